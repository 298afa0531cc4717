"""What NVFlare's client process of a site holds: one published function, bytes to bytes, and the process in which the site lives.

The function waits at most a turn, for the coordinator alone and once for each letter; what takes longer goes on in a thread of its own, and
its answer is kept for whoever holds the ticket. So other sites, who can call it as well, hold none of NVFlare's threads, and what they hand
in is done beside what the coordinator hands in, not before it.

What a relay comes to leaves the site at which it ends for the coordinator alone, who asks for it. The function never raises: what NVFlare
makes of an exception, traceback included, would travel to the server. What it says itself, where the site does not answer, is in the site's
audit log first.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.collab import collab  # type: ignore[import-untyped]

from pppml_core.engines.words import LOSS, Words, write_apart
from pppml_core.errors import PppmlError, WireError
from pppml_core.federation.letter import frame_in, letter_in, read_letter
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.codec import decode, decode_message
from pppml_core.wire.messages import SERVER, SUMS
from pppml_nvflare.calls import Caller, ends_here, handed_on, turn, way_of
from pppml_nvflare.forms import write_walk
from pppml_nvflare.homes import own_home
from pppml_nvflare.lodging import Gone, Lodging
from pppml_nvflare.processes import do_without_torch
from pppml_nvflare.works import KEPT, PEERS, Works

_log = logging.getLogger("pppml.nvflare")
#: what may be asked: names and types.
_FORMS: tuple[dict[str, type], ...] = ({"ticket": bytes, "letter": bytes}, {"ticket": bytes}, {"ended": str})
_BUSY = "busy: this site holds as many letters as it takes at a time"
_NOTHING = "this site holds nothing of that; its NVFlare client may have been started again"
_NOT_ITS_OWN = "another site may hand on a letter of its own, of a relay, and say nothing else"
_NO_REQUEST = "this is no request"


class Door:
    """Takes the calls of one site. NVFlare makes it, when a job begins.

    Args:
        timeout, silence: as in the engine's settings: how long this site waits for another one that it hands a relay on to.
    """

    def __init__(self, timeout: float, silence: float) -> None:
        self.timeout, self.silence = timeout, silence
        self._lodging: Lodging | None = None
        self._lock = threading.Lock()
        self._words = Words(write=write_apart)
        #: of each site that called; NVFlare knows them, so they are those of the job.
        self._works: dict[str, Works] = {}
        #: of the last relay of each site that ended here: the hash of the frame it handed on, and what came of it.
        self._ended: dict[str, tuple[str, Walk]] = {}
        do_without_torch()  # the site lives in a process of its own

    @collab.publish  # type: ignore[untyped-decorator]
    def answer(self, request: bytes) -> bytes:
        """The answer that belongs to a ticket, or nothing where it is not there yet; nothing, at once, where nothing is asked.

        Args:
            request: empty; a map with a ticket, and the first time a letter; or one with the hash of the frame with which a relay ended.
        """
        if not request:
            return b""
        own, caller = collab.site_name, collab.caller
        try:
            asked = _read(request)
            if "ended" in asked:
                return self._what_came(asked["ended"], caller)
            works, patience = self._works_of(caller), turn(self.silence) if caller == SERVER else 0.0
            if (work := works.find(asked["ticket"], caller)) is None:
                letter = _letter(asked, caller)
                if caller == SERVER:
                    self._ended = {}  # it is past the relays of before
                others = {client.name: client for client in collab.clients if client.name != own}
                by = _Given(caller, letter, lambda: Caller(others, self.timeout, self.silence, sealed=True))
                work = works.take(asked["ticket"], caller, _Task(self, own, by), patience)
        except PppmlError as error:
            return self._lost(own, error.message)
        return self._lost(own, _BUSY) if work is None else work.wait(patience)

    @collab.final  # type: ignore[untyped-decorator]
    def leave(self) -> None:
        """The job is over."""
        with self._lock:
            for works in self._works.values():
                works.end()
        self._ended = {}
        if self._lodging is not None:
            self._lodging.close()
        self._words.end()

    def _works_of(self, caller: str) -> Works:
        with self._lock:
            return self._works.setdefault(caller, Works(KEPT if caller == SERVER else PEERS))

    def lodging(self, own: str) -> Lodging:
        """Where the site lives."""
        with self._lock:
            if self._lodging is None:
                self._lodging = Lodging(own_home(own))
            return self._lodging

    def written(self, own: str, by: _Given, done: Callable[[], Walk | None]) -> bytes | None:
        """What came of it as bytes, a loss once it is in the audit log; None where there is nothing yet. For another site: how it went."""
        try:
            found = done()
        except (Gone, PppmlError) as error:
            return self._lost(own, error.message)
        except Exception as error:
            # Never the text of a fault: it may hold data, and this travels to the server.
            return self._lost(own, f"its NVFlare client failed: {type(error).__name__}")
        if found is None:
            return None
        if by.caller != SERVER:
            if ends_here(found):
                self._ended[by.caller] = hashlib.sha256(frame_in(by.letter)).hexdigest(), found
            found = way_of(found)
        return self._told(own, found) if isinstance(found.reply, Loss) else write_walk(found)

    def _what_came(self, ended: str, caller: str) -> bytes:
        """The end of a relay, for the coordinator."""
        if caller != SERVER:
            raise WireError(_NOT_ITS_OWN)
        found = next((walk for sha256, walk in list(self._ended.values()) if sha256 == ended), None)
        if found is None:
            raise WireError(_NOTHING)
        return write_walk(found)

    def _lost(self, own: str, reason: str) -> bytes:
        return self._told(own, Walk(own, Loss(reason, handed=True)))

    def _told(self, own: str, walk: Walk) -> bytes:
        """A loss as bytes, once it is in the audit log."""
        assert isinstance(walk.reply, Loss)
        told = write_walk(walk)
        try:
            self._words.note(own_home(own), LOSS, told, walk.reply.reason)
        except (PppmlError, OSError) as error:
            _log.error("%s is lost (%s), which its audit log cannot take: %s", own, walk.reply.reason, error)
            return write_walk(Walk(own, Loss("this site cannot write its audit log", handed=True)))
        return told


@dataclass(frozen=True)
class _Given:
    """A letter, who called with it, and how to call the sites it may go on to."""

    caller: str
    letter: bytes
    others: Callable[[], Caller]


class _Task:
    """One letter: handed to the process of the site, and, where that answers with a letter, to the next site of a relay."""

    def __init__(self, door: Door, own: str, given: _Given) -> None:
        self._door, self._own, self._given = door, own, given
        self._handed = False
        self._first: bytes | None = None

    def begin(self, patience: float) -> bytes | None:
        """The site's own reply, where its process is idle and soon done."""
        return self._door.written(self._own, self._given, lambda: self._begun(patience))

    def finish(self) -> bytes:
        """The answer, however long it takes."""
        given = self._given
        found = self._door.written(self._own, given, lambda: handed_on(given.letter, self._own, self._receive, given.others()))
        assert found is not None
        return found

    def _begun(self, patience: float) -> Walk | None:
        lodging = self._door.lodging(self._own)
        self._handed = lodging.hand(self._given.letter)
        if not self._handed or (first := lodging.reply(patience)) is None:
            return None
        self._handed, self._first = False, first
        return Walk(self._own, first) if letter_in(first) is None else None

    def _receive(self, data: bytes, skipped: int) -> bytes:
        """As the site's own, of which the first answer may be here, or on its way."""
        first, self._first = self._first, None
        if self._handed:
            self._handed, first = False, self._door.lodging(self._own).reply()
        return self._door.lodging(self._own).receive(data, skipped) if first is None else first


def _letter(asked: Mapping[str, Any], caller: str) -> bytes:
    """The letter that is handed over. Who signed it is the site's to verify; here a site may only pass on one of its own."""
    if (data := asked.get("letter")) is None:
        raise WireError(_NOTHING)
    assert isinstance(data, bytes)
    if caller != SERVER:
        try:
            letter = read_letter(data)
            message = decode_message(letter.frame)
        except WireError as error:
            raise WireError(_NOT_ITS_OWN) from error
        if (letter.signer, message.sender) != (caller, caller) or message.kind not in SUMS:
            raise WireError(_NOT_ITS_OWN)
    return data


def _read(request: bytes) -> dict[str, Any]:
    try:
        asked = decode(request)
    except WireError as error:
        raise WireError(_NO_REQUEST) from error
    if not isinstance(asked, dict) or {name: type(value) for name, value in asked.items()} not in _FORMS:
        raise WireError(_NO_REQUEST)
    return asked

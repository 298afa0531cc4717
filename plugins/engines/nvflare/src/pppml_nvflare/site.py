"""What NVFlare's client process of a site holds: one published function, bytes to bytes, and the process in which the site lives.

The function waits at most a turn; what takes longer goes on in a thread of its own, and its answer is kept for whoever holds the ticket. It
never raises: what NVFlare makes of an exception, traceback included, would travel to the server. What it says itself, where the site does
not answer, is in the site's audit log first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.collab import collab  # type: ignore[import-untyped]

from pppml_core.engines.words import LOSS, Words
from pppml_core.errors import PppmlError, WireError
from pppml_core.federation.letter import letter_in, read_letter
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.codec import decode, decode_message
from pppml_core.wire.messages import SERVER
from pppml_nvflare.calls import TURN, Caller, handed_on
from pppml_nvflare.forms import write_walk
from pppml_nvflare.homes import own_home
from pppml_nvflare.lodging import Gone, Lodging
from pppml_nvflare.processes import do_without_torch
from pppml_nvflare.works import Works

_log = logging.getLogger("pppml.nvflare")
_FORM = {"ticket": bytes, "timeout": float, "silence": float}
_BUSY = "busy: this site holds as many letters as it takes at a time"
_NOTHING = "this site holds nothing of that; its NVFlare client may have been started again"
_NOT_ITS_OWN = "another site may hand on a letter of its own, of a relay, and say nothing else"
_NO_REQUEST = "this is no request"


class Desk:
    """Takes the calls of one site. NVFlare makes it, when a job begins."""

    def __init__(self) -> None:
        self._lodging: Lodging | None = None
        self._words = Words()
        self._works = Works()
        do_without_torch()  # the site lives in a process of its own

    @collab.publish  # type: ignore[untyped-decorator]
    def answer(self, request: bytes) -> bytes:
        """The answer that belongs to a ticket, or nothing where it is not there yet; nothing, at once, where nothing is asked.

        Args:
            request: empty, or a map with a ticket, and the first time a letter.
        """
        if not request:
            return b""
        own, caller = collab.site_name, collab.caller
        try:
            asked = _read(request)
            if (work := self._works.find(asked["ticket"], caller)) is None:
                letter = _letter(asked, caller)
                others = {client.name: client for client in collab.clients if client.name != own}
                task = _Task(self, own, letter, lambda: Caller(others, asked["timeout"], asked["silence"], sealed=True))
                work = self._works.take(asked["ticket"], caller, task, min(TURN, asked["silence"] / 2))
        except PppmlError as error:
            return self._lost(own, error.message)
        if work is None:
            return self._lost(own, _BUSY)
        return work.answer if work.done.wait(min(TURN, asked["silence"] / 2)) else b""

    @collab.final  # type: ignore[untyped-decorator]
    def leave(self) -> None:
        """The job is over."""
        self._works.end()
        if self._lodging is not None:
            self._lodging.close()
        self._words.end()

    def lodging(self, own: str) -> Lodging:
        """Where the site lives."""
        if self._lodging is None:
            self._lodging = Lodging(own_home(own))
        return self._lodging

    def written(self, own: str, done: Callable[[], Walk | None]) -> bytes | None:
        """What came of it as bytes, a loss once it is in the audit log; None where there is nothing yet."""
        try:
            found = done()
        except (Gone, PppmlError) as error:
            return self._lost(own, error.message)
        except Exception as error:
            # Never the text of a fault: it may hold data, and this travels to the server.
            return self._lost(own, f"its NVFlare client failed: {type(error).__name__}")
        if found is None:
            return None
        return self._told(own, found) if isinstance(found.reply, Loss) else write_walk(found)

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


class _Task:
    """One letter at a desk: handed to the process of the site, and, where that answers with a letter, to the next site of a relay."""

    def __init__(self, desk: Desk, own: str, letter: bytes, others: Callable[[], Caller]) -> None:
        self._desk, self._own, self._letter, self._others = desk, own, letter, others
        self._handed = False
        self._first: bytes | None = None

    def begin(self, patience: float) -> bytes | None:
        """The site's own reply, where its process is idle and soon done."""
        return self._desk.written(self._own, lambda: self._begun(patience))

    def finish(self) -> bytes:
        """The answer, however long it takes."""
        found = self._desk.written(self._own, lambda: handed_on(self._letter, self._own, self._receive, self._others()))
        assert found is not None
        return found

    def _begun(self, patience: float) -> Walk | None:
        lodging = self._desk.lodging(self._own)
        self._handed = lodging.hand(self._letter)
        if not self._handed or (first := lodging.reply(patience)) is None:
            return None
        self._handed, self._first = False, first
        return Walk(self._own, first) if letter_in(first) is None else None

    def _receive(self, data: bytes, skipped: int) -> bytes:
        """As the site's own, of which the first answer may be here, or on its way."""
        first, self._first = self._first, None
        if self._handed:
            self._handed, first = False, self._desk.lodging(self._own).reply()
        return self._desk.lodging(self._own).receive(data, skipped) if first is None else first


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
        if (letter.signer, message.sender, message.kind) != (caller, caller, "session"):
            raise WireError(_NOT_ITS_OWN)
    return data


def _read(request: bytes) -> dict[str, Any]:
    try:
        asked = decode(request)
    except WireError as error:
        raise WireError(_NO_REQUEST) from error
    if not isinstance(asked, dict) or not set(_FORM) <= set(asked) <= {*_FORM, "letter"} or type(asked.get("letter", b"")) is not bytes:
        raise WireError(_NO_REQUEST)
    if any(type(asked[name]) is not form for name, form in _FORM.items()) or not asked["silence"] >= 0:
        raise WireError(_NO_REQUEST)
    return asked

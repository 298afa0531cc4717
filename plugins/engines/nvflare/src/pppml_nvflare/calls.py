"""Asking a site over Collab, from the coordinator or from another site.

A site's answer may be due in an hour, and a site that is gone should be noticed in a minute. So a call never waits long: the first
hands the frame over under a fresh ticket and comes back with the answer or, after a turn, without one; further calls with the same ticket
ask again. A call that fails is tried again until the site has been silent for too long; no frame is ever handed over twice.

NVFlare cannot say whether a call that failed had reached the site. So a site that was not heard of just now is called without a frame
first: only a site that does not answer that was surely never handed its frame.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nvflare.collab.api.exceptions import CollabCallError, RunAborted  # type: ignore[import-untyped]

from pppml_core.errors import RunFailed, WireError
from pppml_core.federation.letter import letter_in, read_letter
from pppml_core.interfaces.engine import Loss, Step, Walk
from pppml_core.randomness import entropy
from pppml_core.wire.codec import decode_message, encode
from pppml_nvflare.forms import read_walk

#: seconds a call waits at the site for the answer.
TURN = 10.0
#: seconds a site has to answer a call without a frame; and one that did not the last time.
REACH, REACH_AGAIN = 10.0, 2.0
#: seconds for which a site that was heard of is taken to be there.
FRESH = 1.0


class Caller:
    """Calls the sites of one NVFlare job.

    Args:
        proxies: site -> its Collab proxy.
        timeout: seconds a site may take for one answer.
        silence: seconds without a sign of life after which a site is lost.
        sealed: let NVFlare encrypt calls for the other end's certificate, where it can: what clients say to each other passes its server.
    """

    def __init__(self, proxies: Mapping[str, Any], timeout: float, silence: float, *, sealed: bool = False) -> None:
        self.timeout, self.silence = timeout, silence
        self._proxies = dict(proxies)
        self._heard: dict[str, float] = {}
        self._absent: set[str] = set()
        self._sealed = sealed and all(p.backend.cell.core_cell.supports_secure_messages() for p in self._proxies.values())

    def ask(self, site: str, data: bytes, *, hops: int = 0, certain: bool = False) -> Walk | Loss:
        """A site's answer to a letter, and how it went on from there; or the loss of the site.

        ``hops``: sites that it goes on to. ``certain``: call it without a frame first however recently it was heard of.
        """
        if site not in self._proxies:
            return Loss("its NVFlare client was not connected when the job began", handed=False)
        if (certain or time.monotonic() - self._heard.get(site, -FRESH) > FRESH) and not self._reaches(site):
            return Loss("its NVFlare client does not answer", handed=False)
        request: dict[str, Any] = {"ticket": entropy(16), "timeout": self.timeout, "silence": self.silence}
        deadline = time.monotonic() + self.timeout * (1 + hops)
        given: dict[str, Any] = {"letter": data}
        while True:
            try:
                answer = self._call(site, encode({**request, **given}), min(TURN, self.silence / 2) + self.silence)
            except CollabCallError as error:
                if time.monotonic() - self._heard.get(site, 0.0) > self.silence:
                    return Loss(f"no sign of life for {self.silence:g} seconds ({_said(error)})", handed=True)
                time.sleep(1.0)
                answer = b""
            if answer:
                try:
                    found = read_walk(answer)
                except WireError as error:
                    return Loss(f"its answer could not be read: {error.message}", handed=True)
                # The bytes are at its machine by now, whatever it says: nobody may be put in its place.
                if isinstance(found.reply, Loss) and found.at == site:
                    return replace(found, reply=Loss(found.reply.reason, handed=True))
                return found
            if time.monotonic() > deadline:
                return Loss(f"no answer within {self.timeout:g} seconds", handed=True)
            given = {}

    def hand(self, site: str, data: bytes) -> Walk:
        """Hand a letter of a relay to a site; how it went on from there, this step included. Nobody is passed over here."""
        letter = read_letter(data)
        step = Step(letter.signer, site, len(letter.frame), hashlib.sha256(letter.frame).hexdigest())
        found = self.ask(site, data, hops=len(letter.path), certain=True)
        if isinstance(found, Walk):
            return replace(found, steps=(step, *found.steps))
        return Walk(site, found, (step,)) if found.handed else Walk(site, found, unhanded=letter.frame)

    def _reaches(self, site: str) -> bool:
        try:
            self._call(site, b"", min(REACH_AGAIN if site in self._absent else REACH, self.silence))
        except CollabCallError:
            self._absent.add(site)
            return False
        self._absent.discard(site)
        return True

    def _call(self, site: str, request: bytes, timeout: float) -> bytes:
        try:
            answer = self._proxies[site](timeout=timeout, secure=self._sealed).answer(request=request)
        except RunAborted as error:
            raise RunFailed("the NVFlare job was aborted", place=f"site {site}", hint="its logs say why; then resume the run") from error
        self._heard[site] = time.monotonic()
        return answer if isinstance(answer, bytes) else b"?"


def handed_on(data: bytes, own: str, receive: Callable[[bytes, int], bytes], others: Caller) -> Walk:
    """What a site does with a letter: its reply goes back, or a letter of its own goes to the next of a relay.

    ``receive(data, skipped)`` is the resident's, which decides all of it: to whom, and whether one that cannot be reached is passed over.
    """
    passed: list[str] = []
    while (onward := letter_in(answer := receive(data, len(passed)))) is not None:
        site = decode_message(onward.frame).recipient
        found = others.hand(site, answer)
        if found.steps or not onward.bridge:
            return replace(found, bridged=(*passed, *found.bridged))
        passed.append(site)
    return Walk(own, answer, bridged=tuple(passed))


def _said(error: CollabCallError) -> str:
    return " ".join(str(error.cause).split())[:200]

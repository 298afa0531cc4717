"""Asking a site over Collab, from the coordinator or from another site.

A site's answer may be due in an hour, and a site that is gone should be noticed in a minute. So a call never waits long: the first
hands the frame over under a fresh ticket and comes back with the answer or, after a turn, without one; further calls with the same ticket
ask again. A call that fails is tried again until the site has been silent for too long; no frame is ever handed over twice.

A site waits with its answer for the coordinator, and for nobody else: another site is answered at once and asks again after a while that
grows. And of a relay nothing comes back through the sites before but how it went: what came of it stays at the site at which it ended, and
the coordinator fetches it there.

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
#: seconds between two calls to a site that does not wait: at first, and at most.
PAUSE, LONGEST_PAUSE = 0.005, 0.5
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
        ticket = entropy(16)
        return self._answer(site, {"ticket": ticket, "letter": data}, {"ticket": ticket}, self.timeout * (1 + hops))

    def _answer(self, site: str, first: dict[str, Any], again: dict[str, Any], timeout: float) -> Walk | Loss:
        """What a site answers to a request, and to another one for as long as it answers nothing. Its silence begins here at the
        earliest: who was not asked owed no sign of life.
        """
        asked, pause, request = time.monotonic(), PAUSE, encode(first)
        while True:
            began = time.monotonic()
            try:
                answer = self._call(site, request, turn(self.silence) + self.silence)
            except CollabCallError as error:
                if time.monotonic() - max(asked, self._heard.get(site, asked)) > self.silence:
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
            if time.monotonic() > asked + timeout:
                return Loss(f"no answer within {self.timeout:g} seconds", handed=True)
            request = encode(again)
            time.sleep(max(0.0, pause - (time.monotonic() - began)))
            pause = min(2 * pause, LONGEST_PAUSE)

    def hand(self, site: str, data: bytes) -> Walk:
        """Hand a letter of a relay to a site; how it went on from there, this step included. Nobody is passed over here."""
        letter = read_letter(data)
        step = Step(letter.signer, site, len(letter.frame), hashlib.sha256(letter.frame).hexdigest())
        found = self.ask(site, data, hops=len(letter.path), certain=True)
        if isinstance(found, Walk):
            return replace(found, steps=(step, *found.steps))
        return Walk(site, found, (step,)) if found.handed else Walk(site, found, unhanded=letter.frame)

    def walk(self, site: str, data: bytes) -> Walk:
        """A relay, from its first site on, as the coordinator asks for it. How it went the sites tell each other; its reply, or the frame
        that could not be handed on, comes from the site at which it ended, and from no other.
        """
        found = self.hand(site, data)
        lost = isinstance(found.reply, Loss)
        if len(found.steps) < 2 or (isinstance(found.reply, Loss) and found.reply.handed):
            return found
        last = found.steps[-1]
        kept = self._fetch(last.recipient, last.sha256)
        if isinstance(kept, Loss):
            return replace(found, unhanded=None) if lost else replace(found, reply=Loss(kept.reason, handed=True))
        return replace(found, unhanded=kept.unhanded) if lost else replace(found, reply=kept.reply)

    def _fetch(self, site: str, sha256: str) -> Walk | Loss:
        """What a site keeps of the relay that ended with a frame of this hash."""
        if site not in self._proxies:
            return Loss("its NVFlare client was not connected when the job began", handed=False)
        return self._answer(site, {"ended": sha256}, {"ended": sha256}, self.timeout)

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


def turn(silence: float) -> float:
    """Seconds that a site keeps the coordinator's call waiting."""
    return min(TURN, silence / 2)


def ends_here(found: Walk) -> bool:
    """Whether a relay went no further than the site that tells of it, which has its reply, or the frame that could not be handed on."""
    return not found.steps and (not isinstance(found.reply, Loss) or found.unhanded is not None)


def way_of(found: Walk) -> Walk:
    """How a relay went, without anything that a site made for it: all that another site gets to see."""
    return replace(found, reply=found.reply if isinstance(found.reply, Loss) else b"", unhanded=None)


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

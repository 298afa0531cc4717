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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nvflare.collab.api.exceptions import CollabCallError, RunAborted  # type: ignore[import-untyped]

from pppml_core.errors import RunFailed, WireError
from pppml_core.interfaces.engine import Loss, Step, Walk
from pppml_core.randomness import entropy
from pppml_core.wire.codec import decode_message, encode, encode_message
from pppml_core.wire.messages import Message
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

    def ask(self, site: str, frame: bytes, path: Sequence[str] = (), *, bridge: bool = False, certain: bool = False) -> Walk | Loss:
        """A site's answer to a frame, and to whom it handed it on along ``path``; or the loss of the site.

        ``certain``: call it without a frame first however recently it was heard of.
        """
        if site not in self._proxies:
            return Loss("its NVFlare client was not connected when the job began", handed=False)
        if (certain or time.monotonic() - self._heard.get(site, -FRESH) > FRESH) and not self._reaches(site):
            return Loss("its NVFlare client does not answer", handed=False)
        request: dict[str, Any] = {
            "ticket": entropy(16),
            "timeout": self.timeout,
            "silence": self.silence,
            "path": list(path),
            "bridge": bridge,
        }
        deadline = time.monotonic() + self.timeout * (1 + len(path))
        given: dict[str, Any] = {"frame": frame}
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
                    return read_walk(answer)
                except WireError as error:
                    return Loss(f"its answer could not be read: {error.message}", handed=True)
            if time.monotonic() > deadline:
                return Loss(f"no answer within {self.timeout:g} seconds", handed=True)
            given = {}

    def hand_on(self, own: str, message: Message, path: Sequence[str], *, bridge: bool) -> Walk:
        """Hand ``message`` (its body; who sends and who gets it are set here) to the first of ``path`` and let it hand it on."""
        bridged: list[str] = []
        for index, site in enumerate(path):
            frame = encode_message(replace(message, sender=own, recipient=site))
            step = Step(own, site, len(frame), hashlib.sha256(frame).hexdigest())
            found = self.ask(site, frame, path[index + 1 :], bridge=bridge, certain=True)
            if isinstance(found, Walk):
                return replace(found, steps=(step, *found.steps), bridged=(*bridged, *found.bridged))
            if found.handed:
                return Walk(site, found, (step,), tuple(bridged))
            if not bridge:
                return Walk(site, found, (), tuple(bridged), frame)
            bridged.append(site)
        return Walk(own, Loss("nobody is left to hand it to", handed=False), (), tuple(bridged))

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


def replied(message: Message, own: str, reply: bytes, path: Sequence[str], caller: Caller, *, bridge: bool) -> Walk:
    """What a site's reply becomes: an answer to who asked where it is the last of a relay, else a message of its own to the next."""
    if not path or (answer := decode_message(reply)).kind != "reply":
        return Walk(own, reply)
    found = caller.hand_on(own, replace(message, body=answer.body), path, bridge=bridge)
    return replace(found, at=own, reply=reply) if found.at == own else found


def _said(error: CollabCallError) -> str:
    return " ".join(str(error.cause).split())[:200]

"""Frames over Flower: pushed one by one, answers looked for until each site's deadline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

from pppml_core.errors import PppmlError
from pppml_core.interfaces.engine import Loss
from pppml_flower.introduction import Directory
from pppml_flower.post import FRAME, Answer, Post

#: seconds a message outlives its deadline: what comes later is nobody's, and the SuperLink need not keep it.
MARGIN = 60.0
#: seconds between two looks, at most: one that took longer met a SuperLink that was away.
_REST = 2.0
#: seconds that an answer which has begun to arrive has for the rest, at least: it may be looked for after its deadline, behind others.
_LAST = 2.0


class FlowerTransport:
    """A transport over a post office.

    Args:
        post: reaches the nodes.
        directory: site -> node.
        sites: all sites of the run.
        timeout: seconds a site may take for one answer.
        poll: seconds between two looks for answers.
    """

    def __init__(self, post: Post, directory: Directory, sites: Iterable[str], timeout: float, poll: float) -> None:
        self._post, self._directory, self._timeout, self._poll = post, directory, timeout, poll
        self.parallel = max(1, len(tuple(sites)))

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """All sites at once; each reply or loss as it comes."""
        waiting: dict[str, tuple[str, float]] = {}
        # Who is connected now; a site whose node is gone may have come back with another one.
        self._directory.look(0.0)
        for site, frame in frames:
            node = self._directory.nodes.get(site)
            if node is None or node not in self._directory.online:
                yield site, Loss("its node is not connected", handed=False)
                continue
            try:
                message_id = self._post.push(node, FRAME, frame, self._timeout + MARGIN)
            except PppmlError:
                raise
            except Exception as error:
                # Whatever Flower's client raises when the SuperLink is away or slow: the message may have been taken.
                yield site, Loss(f"the request could not be handed over: {type(error).__name__}", handed=True)
                continue
            if message_id is None:
                yield site, Loss("the SuperLink did not take the request", handed=False)
                continue
            waiting[message_id] = site, time.monotonic() + self._timeout
        while waiting:
            looked, before = time.monotonic(), len(waiting)
            for message_id, answer in self._pull({message_id: deadline for message_id, (_, deadline) in waiting.items()}):
                yield waiting.pop(message_id)[0], _reply(*answer)
            over = [message_id for message_id, (_, deadline) in waiting.items() if time.monotonic() >= deadline]
            for message_id in over:
                yield waiting.pop(message_id)[0], Loss(f"no answer within {self._timeout:g} seconds", handed=True)
            if waiting:
                # Looks for many sites take time, which is the SuperLink's too: at least as long it is left alone.
                took = time.monotonic() - looked if len(waiting) == before else 0.0
                time.sleep(max(self._poll, min(took, _REST)))

    def _pull(self, deadlines: Mapping[str, float]) -> Iterator[tuple[str, Answer]]:
        """Those that have come, one in memory at a time."""
        for message_id, deadline in deadlines.items():
            try:
                answer = self._post.pull(message_id, max(deadline - time.monotonic(), _LAST))
            except PppmlError:
                raise
            except Exception:
                # The SuperLink is busy, or this answer cannot be read: it is asked for until its deadline, and so are the others.
                continue
            if answer is not None:
                yield message_id, answer

    def remarks(self) -> list[str]:
        """Nodes that were passed over."""
        return [f"node {node} was passed over: {reason}" for node, reason in self._directory.strange.items()]

    def clock(self) -> Mapping[str, float]:
        """Sites do not tell."""
        return {}

    def close(self) -> None:
        """The SuperNodes go on for the next run."""


def _reply(kind: str, data: bytes) -> bytes | Loss:
    if kind == FRAME:
        return data
    return Loss(data.decode(errors="replace") if not kind else "it answered with something else than a frame", handed=True)

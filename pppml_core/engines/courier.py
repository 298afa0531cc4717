"""The courier: performs a protocol's operations over any transport. Shared by all engines.

It encodes messages, lets the transport deliver the frames, checks that each reply is the one that was asked for and carries only what
the manifest declares, folds replies as they arrive, walks relays hop by hop, and writes every hop into the transcript. A reply that
does not fit is a lost site, never an exception: what a loss means is the protocol's to decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pppml_core.errors import UndeclaredField, WireError
from pppml_core.interfaces.engine import Loss, Topology, Transport, Walk
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import SERVER, Body, Exchange, ExchangeOutcome, Message, Operation, Outcome, Relay, RelayOutcome
from pppml_core.wire.transcript import Transcript

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Address:
    """What every message of one attempt has in common."""

    run: bytes
    round: int
    attempt: int


class Courier:
    """Performs operations for one run.

    Args:
        transport: delivers frames.
        topology: ``p2p``: a relay hop goes from site to site; ``star``: the server carries it.
        transcript: records every hop.
        emit: gets ``stage-started``, ``site-done``, ``site-lost`` and ``stage`` events.
    """

    def __init__(self, transport: Transport, topology: Topology, transcript: Transcript, emit: Emit = lambda event: None) -> None:
        self._transport, self._topology, self._transcript, self._emit = transport, topology, transcript, emit

    def perform(self, operations: Operation | Sequence[Operation], address: Address, manifest: Manifest) -> Outcome | list[Outcome]:
        """One operation and its outcome, or several and theirs in order."""
        if isinstance(operations, Exchange):
            return self._exchange(operations, address, manifest)
        if isinstance(operations, Relay):
            return self._relay(operations, address, manifest)
        return [
            self._exchange(op, address, manifest) if isinstance(op, Exchange) else self._relay(op, address, manifest) for op in operations
        ]

    def _exchange(self, op: Exchange, address: Address, manifest: Manifest) -> ExchangeOutcome:
        self._stage_begins(op.stage, address, op.bodies)
        sent, started = 0, time.perf_counter()
        asked: dict[str, Message] = {}
        begun: dict[str, float] = {}

        def frames() -> Iterator[tuple[str, bytes]]:
            # Encoded one at a time, as the transport asks: the server never holds all of them.
            nonlocal sent
            for site, own in op.bodies.items():
                message = Message(address.run, address.round, address.attempt, op.kind, op.stage, SERVER, site, {**op.common, **own})
                frame = encode_message(message)
                asked[site] = replace(message, body={})
                begun[site] = time.perf_counter()
                sent += len(frame)
                self._transcript.append(message, frame)
                yield site, frame

        replies: dict[str, Body] = {}
        lost: dict[str, str] = {}
        answered: list[str] = []
        received = 0
        for site, reply in self._answers(frames(), op.bodies):
            received += 0 if isinstance(reply, Loss) else len(reply)
            body = self._accept(asked[site], reply, manifest, recorded=True)
            if op.fold is not None and not isinstance(body, str):
                try:
                    op.fold(site, body)
                except WireError as error:
                    body = f"its reply is not a contribution: {error}"
            if isinstance(body, str):
                lost[site] = body
                self._emit({"event": "site-lost", "round": address.round, "stage": op.stage, "site": site, "reason": body})
                continue
            size = len(reply) if isinstance(reply, bytes) else 0
            seconds = time.perf_counter() - begun[site]
            self._emit({"event": "site-done", "round": address.round, "stage": op.stage, "site": site, "seconds": seconds, "bytes": size})
            answered.append(site)
            if op.fold is None:
                replies[site] = body
        self._stage_done(op.stage, address, sent, received, started)
        order = list(op.bodies)
        return ExchangeOutcome(replies, tuple(sorted(answered, key=order.index)), lost)

    def _answers(self, frames: Iterator[tuple[str, bytes]], asked: Iterable[str]) -> Iterator[tuple[str, bytes | Loss]]:
        """Each asked site once, whatever the transport does: a second answer is not folded again, a missing one is a loss."""
        waiting = dict.fromkeys(asked)
        for site, reply in self._transport.deliver(frames):
            if site in waiting:
                del waiting[site]
                yield site, reply
        for site in waiting:
            yield site, Loss("no reply came", handed=True)

    def _relay(self, op: Relay, address: Address, manifest: Manifest) -> RelayOutcome:
        """A chain. On a star the server is the carrier of every hop; the bytes are the same."""
        walk: Callable[[Sequence[str], bytes, bool], Walk] | None = getattr(self._transport, "walk", None)
        if walk is not None and self._topology == "p2p" and not self._transcript.payloads:
            return self._walked(op, address, manifest, walk)
        self._stage_begins(op.stage, address, op.path)
        sent = received = 0
        started = time.perf_counter()
        body, sender = op.body, SERVER
        visited: list[str] = []
        bridged: list[str] = []
        for site in op.path:
            message = Message(address.run, address.round, address.attempt, op.kind, op.stage, sender, site, body)
            frame = encode_message(message)
            sent += len(frame)
            direct = sender == SERVER or (self._topology == "p2p" and walk is None)
            self._transcript.append(message, frame, carrier=() if direct else (SERVER,))
            began = time.perf_counter()
            ((_, reply),) = self._transport.deliver([(site, frame)])
            answer = self._accept(message, reply, manifest, recorded=False)
            if isinstance(answer, str):
                self._emit({"event": "site-lost", "round": address.round, "stage": op.stage, "site": site, "reason": answer})
                unhanded = isinstance(reply, Loss) and not reply.handed
                if op.bridge and unhanded:
                    bridged.append(site)
                    continue
                self._stage_done(op.stage, address, sent, received, started)
                return RelayOutcome(None, tuple(visited), tuple(bridged), {site: answer}, body if unhanded else None)
            size = len(reply) if isinstance(reply, bytes) else 0
            received += size
            seconds = time.perf_counter() - began
            self._emit({"event": "site-done", "round": address.round, "stage": op.stage, "site": site, "seconds": seconds, "bytes": size})
            visited.append(site)
            body, sender = answer, site
        if visited:
            closing = Message(address.run, address.round, address.attempt, "reply", op.stage, sender, SERVER, body)
            self._transcript.append(closing, encode_message(closing))
        self._stage_done(op.stage, address, sent, received, started)
        return RelayOutcome(body if visited else None, tuple(visited), tuple(bridged), {})

    def _walked(self, op: Relay, address: Address, manifest: Manifest, walk: Callable[[Sequence[str], bytes, bool], Walk]) -> RelayOutcome:
        """A chain that the sites hand on among themselves: only its beginning and its end pass the server; the rest is what they tell."""
        self._stage_begins(op.stage, address, op.path)
        started = time.perf_counter()
        header = Message(address.run, address.round, address.attempt, op.kind, op.stage, SERVER, op.path[0])
        found = walk(op.path, encode_message(replace(header, body=op.body)), op.bridge)
        lost: dict[str, str] = {}
        if not _follows(found, op.path):
            found = Walk(op.path[0], Loss("what the sites told of this relay does not fit it", handed=True))
        for step in found.steps:
            self._transcript.append_told(replace(header, sender=step.sender, recipient=step.recipient), step.size, step.sha256)
        visited = [step.recipient for step in found.steps]
        asked = replace(header, recipient=found.at)
        answer = self._accept(asked, found.reply, manifest, recorded=False)
        if not isinstance(answer, str) and len(visited) + len(found.bridged) < len(op.path):
            answer = "it did not hand the relay on"
        if isinstance(answer, str) and len(found.bridged) < len(op.path):
            lost, visited = {found.at: answer}, [site for site in visited if site != found.at]
        sizes = [*(step.size for step in found.steps[1:]), len(found.reply) if isinstance(found.reply, bytes) else 0]
        size = dict(zip((step.recipient for step in found.steps), sizes, strict=True)) if found.steps else {}
        reasons = {**dict.fromkeys(found.bridged, "it could not be reached"), **lost}
        event = {"round": address.round, "stage": op.stage}
        seconds = (time.perf_counter() - started) / max(1, len(visited))
        for site in op.path:
            if site in reasons:
                self._emit({"event": "site-lost", **event, "site": site, "reason": reasons[site]})
            elif site in visited:
                self._emit({"event": "site-done", **event, "site": site, "seconds": seconds, "bytes": size[site]})
        self._stage_done(op.stage, address, sum(step.size for step in found.steps), sum(sizes), started)
        if isinstance(answer, str):
            return RelayOutcome(None, tuple(visited), found.bridged, lost, _unhanded(found) if lost else None)
        assert isinstance(found.reply, bytes)
        self._transcript.append(decode_message(found.reply), found.reply)
        return RelayOutcome(answer, tuple(visited), found.bridged, {})

    def _accept(self, asked: Message, reply: bytes | Loss, manifest: Manifest, *, recorded: bool) -> Body | str:
        """The reply's body, or the reason why the site counts as lost."""
        if isinstance(reply, Loss):
            return reply.reason
        try:
            message = decode_message(reply)
        except WireError as error:
            return f"its reply could not be read: {error}"
        same = (message.run, message.round, message.attempt, message.stage, message.sender) == (
            asked.run,
            asked.round,
            asked.attempt,
            asked.stage,
            asked.recipient,
        )
        if not same or message.recipient != SERVER:
            return "its reply belongs to another run, round, attempt, stage or site"
        if recorded:
            self._transcript.append(message, reply)
        if message.kind in ("refused", "failed"):
            verb = "refused" if message.kind == "refused" else "failed"
            return f"it {verb}: {message.body.get('reason', 'no reason given')}"
        if message.kind != "reply":
            return f"it answered with a {message.kind!r} message"
        try:
            manifest.check(asked.stage, message.body)
        except UndeclaredField as error:
            return f"its reply is not what the manifest declares: {error}"
        return message.body

    def _stage_begins(self, stage: str, address: Address, asked: Iterable[str]) -> None:
        self._emit({"event": "stage-started", "round": address.round, "stage": stage, "asked": list(asked)})

    def _stage_done(self, stage: str, address: Address, sent: int, received: int, started: float) -> None:
        self._emit(
            {
                "event": "stage",
                "round": address.round,
                "stage": stage,
                "sent": sent,
                "received": received,
                "seconds": time.perf_counter() - started,
            }
        )


def _follows(found: Walk, path: Sequence[str]) -> bool:
    """Whether what the sites tell is a way along this path: hops in its order, every site left out named, the end where the hops end."""
    reached = [step.recipient for step in found.steps]
    expected = [site for site in path if site not in found.bridged]
    here = len(reached)
    if not (
        set(found.bridged) <= set(path)
        and reached == expected[:here]
        and [step.sender for step in found.steps] == [SERVER, *reached][:here]
    ):
        return False
    if not expected:
        return isinstance(found.reply, Loss)
    if isinstance(found.reply, Loss) and not found.reply.handed:
        return found.at in expected[here : here + 1]
    return here > 0 and found.at == reached[-1]


def _unhanded(found: Walk) -> Body | None:
    """What the lost site would have got, if it was surely never handed it."""
    if found.unhanded is None or not isinstance(found.reply, Loss) or found.reply.handed:
        return None
    try:
        return decode_message(found.unhanded).body
    except WireError:
        return None

"""Faults put between the courier and the sites, for tests: what a network does, and what a lying site could do.

``FaultyTransport`` wraps any transport. It is deterministic: a fault names its site, stage, round and attempt and fires a stated number
of times. A protocol under faults must end in the right sum over the survivors or in an abort, never in a wrong sum.

``Fault`` is part of the local engine's settings, so this module loads numpy and the codec only when a frame is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pppml_core.engines.around import Around
from pppml_core.errors import WireError
from pppml_core.interfaces.engine import Loss, Transport
from pppml_core.wire.messages import Message

Deed = Literal["drop", "drop-reply", "delay", "duplicate", "tamper", "tamper-body", "truncate", "replay"]
DUPLICATE_DIFFERS = "duplicate answered differently"


class _Place(BaseModel):
    """Where something strikes. A place that is not given is any place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: str = Field(description="the site it strikes")
    stage: str | None = Field(None, description="stage of the message; default: any")
    round: int | None = Field(None, ge=0, description="round; default: any")
    attempt: int | None = Field(None, ge=1, description="attempt within the round; default: any")
    times: int = Field(1, ge=1, description="how often it strikes")

    def strikes(self, site: str, message: Message) -> bool:
        """Whether this request is one it is meant for."""
        wanted = ((self.stage, message.stage), (self.round, message.round), (self.attempt, message.attempt))
        return self.site == site and all(place is None or place == actual for place, actual in wanted)


class Fault(_Place):
    """One fault of the network, or of a site that lies: where it strikes and what it does.

    ``drop``: the request never reaches the site. ``drop-reply``: the site has handled it, the reply is lost. ``delay``: the reply comes
    after all others of its exchange. ``duplicate``: the request arrives twice and must be answered with the same bytes. ``tamper``: one
    byte of the reply is flipped. ``tamper-body``: one number of the reply is changed under a valid checksum, as only a lying site could.
    ``truncate``: half of the reply arrives. ``replay``: an earlier reply of the site comes instead, or the request itself where there is
    none.
    """

    do: Deed = Field(description="what happens")
    seconds: float = Field(0.0, ge=0, le=600, description="how long `delay` holds the reply back")


class Strike(_Place):
    """What befalls the process of a site; for engines that give each site one.

    ``kill-before``: it is killed (SIGKILL) before the request is handed to it. ``kill``: once it has the request. ``kill-after``: once
    its reply is here. ``stall``: it is stopped before the request and goes on when nobody waits for its reply any more.
    """

    do: Literal["kill-before", "kill", "kill-after", "stall"] = Field(description="what happens")


class FaultyTransport(Around):
    """A transport with faults. Of the faults that fit one request the first that has strikes left is used.

    Raises WireError from ``deliver`` when a site answers a duplicate with other bytes than the first time.
    """

    def __init__(self, inner: Transport, faults: Sequence[Fault]) -> None:
        super().__init__(inner)
        self._faults = tuple(faults)
        self._left = [fault.times for fault in self._faults]
        self._struck = {fault.site for fault in self._faults}
        self._earlier: dict[str, bytes] = {}

    @property
    def unused(self) -> tuple[Fault, ...]:
        """Faults that have never struck: a misspelt stage, or one that was not reached."""
        return tuple(f for f, left in zip(self._faults, self._left, strict=True) if left == f.times)

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """As the inner transport, with the faults."""
        struck: dict[str, tuple[Fault, bytes]] = {}
        never_handed: list[str] = []

        def handed_on() -> Iterator[tuple[str, bytes]]:
            for site, frame in frames:
                fault = self._next_fault(site, frame)
                if fault is not None and fault.do == "drop":
                    never_handed.append(site)
                    continue
                if fault is not None:
                    struck[site] = fault, frame
                yield site, frame

        delayed: list[tuple[str, bytes | Loss, float]] = []
        doubled: dict[str, bytes | Loss] = {}
        for site, reply in self._inner.deliver(handed_on()):
            if site not in struck:
                yield site, self._remember(site, reply)
                continue
            fault, frame = struck[site]
            if fault.do == "delay":
                delayed.append((site, reply, fault.seconds))
                continue
            if fault.do == "duplicate":
                doubled[site] = reply
            yield site, self._spoil(fault.do, site, frame, reply)
        for site in never_handed:
            yield site, Loss("the request was dropped by a fault", handed=False)
        for site, reply, seconds in delayed:
            time.sleep(seconds)
            yield site, self._remember(site, reply)
        for site, reply in self._inner.deliver([(site, struck[site][1]) for site in doubled]) if doubled else ():
            if reply != doubled[site]:
                raise WireError(DUPLICATE_DIFFERS, place=site, hint="a site stores its reply and sends the stored bytes again")

    def remarks(self) -> list[str]:
        """What the inner transport has to say, and which faults never struck."""
        return [*super().remarks(), *never_struck(self.unused)]

    def _next_fault(self, site: str, frame: bytes) -> Fault | None:
        if site not in self._struck:
            return None
        from pppml_core.wire.codec import decode_message

        message = decode_message(frame)
        for index, fault in enumerate(self._faults):
            if self._left[index] and fault.strikes(site, message):
                self._left[index] -= 1
                return fault
        return None

    def _remember(self, site: str, reply: bytes | Loss) -> bytes | Loss:
        if site in self._struck and isinstance(reply, bytes):
            self._earlier[site] = reply
        return reply

    def _spoil(self, do: Deed, site: str, frame: bytes, reply: bytes | Loss) -> bytes | Loss:
        earlier = self._earlier.get(site, frame)
        self._remember(site, reply)
        if isinstance(reply, Loss) or do == "duplicate":
            return reply
        if do == "drop-reply":
            return Loss("the reply was dropped by a fault", handed=True)
        if do == "replay":
            return earlier
        if do == "truncate":
            return reply[: len(reply) // 2]
        if do == "tamper":
            middle = len(reply) // 2
            return reply[:middle] + bytes([reply[middle] ^ 1]) + reply[middle + 1 :]
        return _with_another_number(reply)


def never_struck(unused: Iterable[BaseModel]) -> list[str]:
    """A sentence for each fault that was meant to happen and did not."""
    told = [", ".join(f"{name}: {value}" for name, value in f.model_dump(exclude_defaults=True).items()) for f in unused]
    return [f"engine.faults: a fault never struck ({text}); check its site, stage and round" for text in told]


def _with_another_number(reply: bytes) -> bytes:
    """The reply with one number of its body changed and a checksum that fits; as it is where it has none."""
    from pppml_core.wire.codec import decode_message, encode_message

    message = decode_message(reply)
    changed, body = _changed(message.body)
    return encode_message(replace(message, body=body)) if changed else reply


def _changed(value: Any) -> tuple[bool, Any]:
    """The value with its first number, in order of keys, changed: an array's first element, bytes' first bit, an integer by one."""
    import numpy as np

    if isinstance(value, np.ndarray) and value.size and value.dtype != bool:
        array = value.copy()
        array.flat[0] = array.flat[0] + 1 if array.flat[0] <= 0 else array.flat[0] - 1
        return True, array
    if isinstance(value, bytes) and value:
        return True, bytes([value[0] ^ 1]) + value[1:]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return True, value + 1
    if isinstance(value, dict):
        for key in sorted(value):
            changed, item = _changed(value[key])
            if changed:
                return True, {**value, key: item}
    if isinstance(value, list):
        for index, entry in enumerate(value):
            changed, item = _changed(entry)
            if changed:
                return True, [*value[:index], item, *value[index + 1 :]]
    return False, value

"""What went over the wire, message by message, with the parties through whose hands each went: from memory or from a run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pppml_core.errors import ConfigError, DataError
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import Message
from pppml_core.wire.transcript import Hop, read_payload, read_transcript


@dataclass(frozen=True)
class Passage:
    """A message that went through the hands of ``parties``, in order: who wrote it, who carried it, who it was for."""

    message: Message
    parties: tuple[str, ...]

    @property
    def links(self) -> set[frozenset[str]]:
        """The pairs of parties between which its frame travelled."""
        return {frozenset(pair) for pair in zip(self.parties, self.parties[1:], strict=False)}


class Recorder:
    """A transcript in memory: give it to a courier in place of a :class:`~pppml_core.wire.transcript.Transcript`."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []

    def append(self, message: Message, frame: bytes | memoryview, *, carrier: tuple[str, ...] = ()) -> None:
        """As :meth:`~pppml_core.wire.transcript.Transcript.append`."""
        self.passages.append(Passage(decode_message(frame), (message.sender, *carrier, message.recipient)))


class Recording:
    """The messages of a run, from its transcript; each is decoded when it is asked for.

    Args:
        folder: the run's.

    Raises DataError where there is no transcript, ConfigError where only sizes were recorded.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hops = _first_hops(read_transcript(folder))
        self._models: dict[bytes, Any] = {}
        if not (folder / "transcripts" / "payloads").is_dir():
            text = "this run recorded the sizes of its messages, not the messages"
            raise ConfigError(text, place=str(folder), hint="run with `run.transcript: secrets` (or `payloads`, for who only listens)")

    def passages(self, *, round: int, kinds: Iterable[str] = ()) -> list[Passage]:
        """Of a round, in order. ``kinds``: of messages; default: all.

        Models are sent to every site; here all messages that carry one share its arrays.
        """
        wanted = set(kinds)
        return [self._passage(hop) for hop in self._hops if hop.round == round and (not wanted or hop.kind in wanted)]

    def model(self, sha256: bytes) -> Mapping[str, Any]:
        """The model of this hash; empty where no message carried it. Each is sent once: before a round, or to be scored after one."""
        for hop in self._hops:
            if bytes(sha256) in self._models:
                break
            if hop.kind in ("open", "evaluate"):
                self._passage(hop)
        found: Mapping[str, Any] = self._models.get(bytes(sha256), {})
        return found

    def weights_before(self, round: int) -> Mapping[str, Any]:
        """The shared weights that a round began with; empty where it was not held."""
        opened = next((hop for hop in self._hops if hop.round == round and hop.kind == "open"), None)
        return {} if opened is None else self.model(self._passage(opened).message.body["sha256"])

    def _passage(self, hop: Hop) -> Passage:
        message = decode_message(read_payload(self._folder, hop.sha256))
        if (message.sender, message.recipient, message.stage) != (hop.origin, hop.final, hop.stage):
            raise DataError("a frame is not the one its line speaks of", place=f"{self._folder}, {hop.sha256}")
        if "weights" in message.body and "sha256" in message.body:
            shared = self._models.setdefault(bytes(message.body["sha256"]), message.body["weights"])
            message = replace(message, body={**message.body, "weights": shared})
        return Passage(message, (hop.origin, *hop.carrier, hop.final))


def _first_hops(hops: list[Hop]) -> list[Hop]:
    """One line of each message: its first link names its origin, its carriers and its end."""
    return [hop for hop in hops if hop.sender == hop.origin]

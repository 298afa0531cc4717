"""What passed over every link: one record a hop, and the bytes themselves when asked.

``transcripts/hops.jsonl`` has one JSON object a line; ``transcripts/payloads/<sha256>.bin`` has the frames, each once. The adversary's
view is computed from these records, so a hop names both its own ends and those of the message it belongs to.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pppml_core.errors import CheckpointError, DataError, RunFailed
from pppml_core.wire.messages import SERVER, Message

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Hop:
    """A frame that went over one link.

    Args:
        round, attempt, kind, stage: of the message.
        sender, recipient: the ends of this link.
        origin, final: who wrote the message and who it is for; the same as sender and recipient unless others carry it.
        carrier: the parties between origin and final through whose hands the frame passes, in order; ``("server",)`` where a star relays
            ``a -> server -> b``, which makes two hops.
        size: bytes of the frame.
        sha256: of the frame, hexadecimal.
        time: seconds since the epoch.

    """

    round: int
    attempt: int
    kind: str
    stage: str
    sender: str
    recipient: str
    origin: str
    final: str
    carrier: tuple[str, ...]
    size: int
    sha256: str
    time: float


class Transcript:
    """Appends hops to a run directory, and counts their bytes.

    Args:
        folder: the run directory; an existing transcript is continued, a last line that a crash tore is dropped.
        payloads: keep the frames too.

    Use it as a context manager or call :meth:`close`.

    """

    def __init__(self, folder: Path, payloads: bool = False) -> None:
        self.path = _hops(folder)
        self.payloads = payloads
        (self.path.parent / "payloads" if payloads else self.path.parent).mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._restart(_whole_lines(self.path.read_bytes()))
        except BaseException:
            self.close()
            raise

    def append(self, message: Message, frame: bytes | memoryview, *, carrier: tuple[str, ...] = ()) -> None:
        """Record that ``frame``, which holds ``message``, went from its sender over the ``carrier`` to its recipient.

        Raises RunFailed where it cannot be written (a full disk); the transcript is then as it was before.
        """
        digest = hashlib.sha256(frame).hexdigest()
        self._note(message, len(frame), digest, carrier, frame if self.payloads else None)

    def append_told(self, message: Message, size: int, sha256: str) -> None:
        """Record a frame that passed from site to site, as the sites tell: its bytes were never here. ``message``: without its body.

        Raises RunFailed as :meth:`append` does, and where this transcript keeps payloads.
        """
        if self.payloads:
            raise RunFailed("a frame was not here to be kept", place=str(self.path), hint="engine.topology: star")
        self._note(message, size, sha256, (), None)

    def _note(self, message: Message, size: int, digest: str, carrier: tuple[str, ...], payload: bytes | memoryview | None) -> None:
        header = (message.round, message.attempt, message.kind, message.stage)
        ends, now = (message.sender, *carrier, message.recipient), time.time()
        links = itertools.pairwise(ends)
        hops = [Hop(*header, *link, ends[0], ends[-1], carrier, size, digest, now) for link in links]
        try:
            if payload is not None:
                _write_once(self.path.parent / "payloads" / f"{digest}.bin", payload)
            self._write(b"".join(json.dumps(asdict(hop)).encode() + b"\n" for hop in hops))
        except OSError as error:
            os.ftruncate(self._file, self._length)
            raise RunFailed(
                f"the transcript cannot be written: {error.strerror}", place=str(self.path), hint="make room and resume"
            ) from error
        for hop in hops:
            self._count(hop)

    def length(self) -> int:
        """Bytes of hops.jsonl, for a checkpoint. The lines up to here are on disk when this returns."""
        os.fsync(self._file)
        return self._length

    def truncate(self, length: int) -> None:
        """Go back to a length that :meth:`length` gave. Raises CheckpointError if the file is shorter or no line ends there."""
        data = self.path.read_bytes()
        if length > len(data) or (length and data[length - 1 : length] != b"\n"):
            raise CheckpointError(
                f"the transcript has {len(data):,} bytes and no line that ends at {length:,}, where the checkpoint was made",
                place=str(self.path),
                hint="the file was changed after the run; resume from an unchanged copy",
            )
        self._restart(data[:length])

    def total(self, direction: Direction | None = None, stage: str | None = None) -> int:
        """Bytes so far. ``up``: sent by sites, ``down``: received by sites (a frame from site to site is both), None: over all links."""
        counts = {"up": self._up, "down": self._down, None: self._all}[direction]
        return counts.total() if stage is None else counts[stage]

    def by_stage(self) -> dict[str, int]:
        """Stage -> bytes over all links so far."""
        return dict(self._all)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _restart(self, data: bytes) -> None:
        """Keep exactly ``data``, the beginning of the file, and count it anew."""
        self._all, self._up, self._down = Counter[str](), Counter[str](), Counter[str]()
        for hop in _parse(data, self.path):
            self._count(hop)
        self._length = len(data)
        os.ftruncate(self._file, self._length)

    def _write(self, lines: bytes) -> None:
        left = memoryview(lines)
        while left:
            left = left[os.write(self._file, left) :]
        self._length += len(lines)

    def _count(self, hop: Hop) -> None:
        self._all[hop.stage] += hop.size
        if hop.sender != SERVER:
            self._up[hop.stage] += hop.size
        if hop.recipient != SERVER:
            self._down[hop.stage] += hop.size


def read_transcript(folder: Path) -> list[Hop]:
    """All hops of a run directory, in order; a torn last line is left out. Raises DataError if there is none or a line is damaged."""
    path = _hops(folder)
    if not path.is_file():
        raise DataError("there is no transcript", place=str(path))
    return list(_parse(_whole_lines(path.read_bytes()), path))


def read_payload(folder: Path, sha256: str) -> bytes:
    """The frame with this hash. Raises DataError if it was not kept or has been changed."""
    path = _hops(folder).parent / "payloads" / f"{sha256}.bin"
    if not path.is_file():
        raise DataError("this frame was not kept", place=str(path), hint="run with payloads in the transcript")
    frame = path.read_bytes()
    if hashlib.sha256(frame).hexdigest() != sha256:
        raise DataError("the frame does not have the hash it is named by", place=str(path))
    return frame


def _hops(folder: Path) -> Path:
    return Path(folder) / "transcripts" / "hops.jsonl"


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _parse(data: bytes, path: Path) -> Iterator[Hop]:
    for number, line in enumerate(data.splitlines(), 1):
        try:
            entry: dict[str, Any] = json.loads(line)
            yield Hop(**{**entry, "carrier": tuple(entry["carrier"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"this line is not a hop ({type(error).__name__})", place=f"{path}:{number}") from None


def _write_once(path: Path, data: bytes | memoryview) -> None:
    """Write a file under its final name only when it is whole."""
    if path.exists():
        return
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

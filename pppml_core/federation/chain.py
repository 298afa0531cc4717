"""A log in a home that shows when somebody changed it: lines that hold the hash of the line before, each signed, and a head that counts
them.

A line is one JSON object, with ``n`` (counted from 1), ``before`` (SHA-256 of the whole line before, in hexadecimal; zeros for the first)
and ``signature`` (by the party's identity, over the rest of the line). The head, a small file beside it, holds ``count``, ``bytes`` and
the ``sha256`` of the last line, signed as well. A changed line has no signature that fits, a removed, doubled or moved one breaks the
chain, and a cut-off end is shorter than its head.

A line is on the disk before :meth:`Chain.append` returns; the head is then written in place, one small block that replaces the old one. A
process that dies between the two leaves lines after the head: they are signed and chained, so they count. What it leaves of an unfinished
line has no line end: it is dropped. After a power cut the head may be some lines behind, never ahead. Who owns the key can write another
log; who keeps an old copy of log and head can put both back. Against these helps only a head that somebody noted elsewhere
(:func:`read_chain`, ``noted``).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pppml_core.errors import PppmlError, WireError
from pppml_core.federation.files import sync_folder, write_atomic
from pppml_core.federation.identity import Identity, statement, verify

#: bytes of the head file, always.
HEAD_SIZE = 512
#: bytes of a line at most.
LINE_SIZE = 32_768
_NONE = "0" * 64
#: threads of one process would write beside the head under one name.
_making = threading.Lock()


class ChainBroken(PppmlError):
    """A log was changed, cut off or damaged; ``message`` begins with the first line that is not right."""


@dataclass(frozen=True)
class Head:
    """Where a log ends: lines, bytes, and SHA-256 of the last line (zeros: no line). What a person writes down, by ``str()``."""

    count: int = 0
    bytes: int = 0
    sha256: str = _NONE

    def __str__(self) -> str:
        return f"{self.count} {self.sha256}"


class Chain:
    """Appends to one log.

    Args:
        path: of the log; the head is beside it, ``<name>.head``.
        identity: signs. Its public identity is what verifies.
        alone: refuse to write where the file system has no locks, so that two processes never write on top of each other.
    """

    def __init__(self, path: Path, identity: Identity, *, alone: bool = False) -> None:
        self.path, self._identity, self._alone = path, identity, alone
        #: where this process left the log; anything else on the disk is read and checked first.
        self._head: Head | None = None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line and return when it is on the disk. Raises ChainBroken where the log is not as it was left, OSError where it cannot
        be written.
        """
        with self.opened() as file:
            self.write(file, entry)

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The log, locked against other processes and checked from its head on; for :meth:`write`, once or several times."""
        with _making:
            if not _exists(self.path, self._identity.public):
                _begin(self.path, self._identity)
        with open(self.path, "r+b") as file:
            _lock(file, fcntl.LOCK_EX, needed=self._alone)
            if self._head is None or os.fstat(file.fileno()).st_size != self._head.bytes:
                self._head = _caught_up(file, self.path, self._identity.public)
                self._write_head(self._head, sync=True)
            yield file

    def count(self) -> int:
        """Lines that the head counts."""
        return (self._head or _read_head(self.path, self._identity.public)).count

    def write(self, file: IO[bytes], entry: Mapping[str, Any]) -> None:
        """Add a line to the log that :meth:`opened` gave."""
        assert self._head is not None
        head = self._head
        line = _line({**entry, "n": head.count + 1, "before": head.sha256}, self.path, self._identity)
        if len(line) > LINE_SIZE:
            raise WireError(f"a line of {len(line):,} bytes does not fit the log", place=self.path.name)
        self._head = None  # until all of it is written
        file.seek(head.bytes)
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # what cannot be taken back is dropped or counted when the log is opened again
                os.ftruncate(file.fileno(), head.bytes)
            raise
        new = Head(head.count + 1, head.bytes + len(line), hashlib.sha256(line[:-1]).hexdigest())
        self._write_head(new)
        self._head = new

    def _write_head(self, head: Head, *, sync: bool = False) -> None:
        descriptor = os.open(_head_file(self.path), os.O_WRONLY)
        try:
            os.pwrite(descriptor, _head_block(head, self.path, self._identity), 0)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_chain(path: Path, public: bytes, noted: str | None = None, *, locked: bool = False) -> tuple[list[dict[str, Any]], Head]:
    """Every line, verified from the first to the last, without ``signature``; and where the log ends. Nothing is written.

    ``noted``: a :class:`Head` that somebody wrote down; that line must still be there. ``locked``: by :meth:`Chain.opened` already. A log
    that never was is empty. Raises ChainBroken naming the first line that is not right.
    """
    entries: list[dict[str, Any]] = []
    at = Head()
    seen = [str(at)]
    if _exists(path, public):
        with open(path, "rb") as file:
            if not locked:
                _lock(file, fcntl.LOCK_SH)
            known = _read_head(path, public)
            for line in file:
                if not line.endswith(b"\n") and at.bytes >= known.bytes:
                    break  # of a process that died; it never left
                entry, at = _next(line, at, path, public)
                if at.count == known.count and at != known:
                    raise _broken(path, at.count, "is not the line that the head stands for")
                entries.append(entry)
                seen.append(str(at))
        if at.count < known.count:
            raise _broken(path, at.count + 1, f"is missing: the head counts {known.count} lines, {at.count} are left")
    if noted is not None and " ".join(noted.split()) not in seen:
        number = noted.split()[0] if noted.split() else ""
        raise ChainBroken(f"line {number} is not the one that was noted: the log was written anew", place=path.name)
    return entries, at


def _begin(path: Path, identity: Identity) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The head first: a log without one was robbed of it.
    write_atomic(_head_file(path), _head_block(Head(), path, identity))
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    sync_folder(path.parent)


def _exists(path: Path, public: bytes) -> bool:
    """Whether there is a log. Raises ChainBroken where only its head is left; one that counts no line is what a crash left of its
    making.
    """
    if not path.exists() and _head_file(path).exists() and _read_head(path, public) != Head():
        raise _broken(path, 1, "is missing: the whole log is gone, its head is not")
    return path.exists()


def _lock(file: IO[bytes], how: int, *, needed: bool = False) -> None:
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if needed:
            hint = "move this home to a disk that has them"
            raise PppmlError("the file system of this home has no locks", place=Path(file.name).name, hint=hint) from error


def _caught_up(file: IO[bytes], path: Path, public: bytes) -> Head:
    """The head, brought up to what was appended after it; what a dead process left unfinished is taken away."""
    head = _read_head(path, public)
    size = os.fstat(file.fileno()).st_size
    if size < head.bytes:
        raise _broken(path, head.count, f"or one before it is missing: the head stands for {head.bytes:,} bytes, {size:,} are left")
    start = max(0, head.bytes - LINE_SIZE)
    file.seek(start)
    last = file.read(head.bytes - start).splitlines(keepends=True)[-1:] or [b""]
    if head.count and hashlib.sha256(last[0].removesuffix(b"\n")).hexdigest() != head.sha256:
        raise _broken(path, head.count, "is not the line that the head stands for")
    file.seek(head.bytes)
    for line in file.read().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            os.ftruncate(file.fileno(), head.bytes)
            break
        _, head = _next(line, head, path, public)
    return head


def _next(line: bytes, before: Head, path: Path, public: bytes) -> tuple[dict[str, Any], Head]:
    """The entry of the line after ``before``, and the head with it. Raises ChainBroken."""
    number = before.count + 1
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or not isinstance(signed := entry.pop("signature", None), str):
            raise ValueError
        text = _text(entry)
        if line != _joined(text, signed):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise _broken(path, number, "is no line of this log: it was changed") from error
    try:
        verify(public, base64.b64decode(signed), _statement(path, text), "this party")
    except (WireError, ValueError) as error:
        raise _broken(path, number, "was changed, or somebody else wrote it: its signature does not fit") from error
    if (entry.get("n"), entry.pop("before", None)) != (number, before.sha256):
        raise _broken(path, number, "does not follow the line before: lines were removed, moved or doubled")
    return entry, Head(number, before.bytes + len(line), hashlib.sha256(line[:-1]).hexdigest())


def _line(entry: Mapping[str, Any], path: Path, identity: Identity) -> bytes:
    text = _text(entry)
    return _joined(text, base64.b64encode(identity.sign(_statement(path, text))).decode())


def _joined(text: str, signature: str) -> bytes:
    return f"{text[:-1]},{json.dumps('signature')}:{json.dumps(signature)}}}\n".encode()


def _text(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _statement(path: Path, text: str) -> bytes:
    return statement("line of a log", bytes(32), {"log": path.name, "text": text})


def _head_block(head: Head, path: Path, identity: Identity) -> bytes:
    return _line(vars(head), path, identity)[:-1].ljust(HEAD_SIZE - 1) + b"\n"


def _read_head(path: Path, public: bytes) -> Head:
    place = _head_file(path)
    try:
        fields = json.loads(place.read_bytes())
        signed = fields.pop("signature")
        verify(public, base64.b64decode(signed), _statement(path, _text(fields)), "this party")
        return Head(**fields)
    except FileNotFoundError as error:
        raise ChainBroken("the head of the log is gone", place=path.name, hint="compare with the head that you noted") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, WireError) as error:
        raise ChainBroken("the head of the log is damaged or was changed", place=place.name) from error


def _head_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _broken(path: Path, number: int, what: str) -> ChainBroken:
    return ChainBroken(f"line {number} {what}", place=path.name)

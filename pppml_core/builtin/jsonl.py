"""Reporter ``jsonl``: every event of a run as one line of ``events.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pppml_core.component import ComponentConfig
from pppml_core.errors import RunFailed
from pppml_core.interfaces.reporter import Event, Reporter


class JsonlConfig(ComponentConfig):
    """The file is always ``events.jsonl`` in the run's folder; there is nothing to set."""


class Jsonl(Reporter):
    """Appends; a line is on its way to the disk before the next event is taken. NaN and infinity are written as null."""

    _file: BinaryIO | None = None

    def open(self, folder: Path) -> None:
        """Open ``folder/events.jsonl`` for appending. Raises RunFailed where it cannot be written."""
        self.close()
        self._path = folder / "events.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torn = _torn(self._path)
            # Unbuffered: one write a line, so a killed process leaves whole lines, and at most one torn one.
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise self._failed(error) from error
        if torn:
            self._write(b"\n")

    def handle(self, event: Event) -> None:
        """Append one line. Raises RunFailed when the disk is full or gone."""
        if self._file is not None:
            self._write(json.dumps(plain(event), allow_nan=False, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        try:
            if self._file.write(line) != len(line):
                raise OSError("the line was written in part only")
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> RunFailed:
        return RunFailed(f"cannot be written: {error.strerror or error}", place=str(self._path), hint="free the disk, then use --resume")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity become None, arrays become lists, bytes are told by their number only."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def _torn(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"

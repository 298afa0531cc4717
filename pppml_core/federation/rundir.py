"""The run directory: which file is what, and the json lines that a resume may cut back."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pppml_core.errors import CheckpointError, RunFailed
from pppml_core.federation.files import write_atomic

#: json-lines files a resume cuts back to the checkpoint. The ledger is not among them.
CUT_BACK = ("metrics.jsonl", "events.jsonl")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A full disk, or another reason why files cannot be written, is RunFailed with the way to go on."""
    try:
        yield
    except OSError as error:
        reason = "no space is left on the device" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        hint = f"make room or remove the cause, then go on with --resume {folder}"
        raise RunFailed(f"the run cannot be written: {reason}", place=str(error.filename or folder), hint=hint) from error


class RunDir:
    """Paths and writers of one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """``config.resolved.yaml``."""
        return self.path / "config.resolved.yaml"

    @property
    def sites(self) -> Path:
        """Each site's own folder lies in here."""
        return self.path / "sites"

    @property
    def checkpoints(self) -> Path:
        """``checkpoints/``."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / "result.json").exists()

    @property
    def reported(self) -> bool:
        """Whether ``report.html`` was written."""
        return (self.path / "report.html").exists()

    def create(self) -> None:
        """Make the folder. Raises RunFailed where it cannot be written, CheckpointError where it already holds a run."""
        if self.config.exists():
            raise CheckpointError("this folder already holds a run", place=str(self.path), hint=f"--resume {self.path}, or another --out")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.sites.mkdir(exist_ok=True)
            probe = self.path / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise RunFailed(
                f"cannot write here: {error.strerror}", place=str(self.path), hint="choose another folder with --out"
            ) from error

    @property
    def id(self) -> Path:
        """``run.id``; who holds its lock may write the run."""
        return self.path / "run.id"

    def run_id(self) -> bytes:
        """The 16 bytes that name the run: drawn once, kept in the folder."""
        path = self.id
        if not path.exists():
            write_atomic(path, os.urandom(16).hex().encode())
        try:
            name = bytes.fromhex(path.read_text())
            if len(name) != 16:
                raise ValueError(f"{len(name)} bytes instead of 16")
            return name
        except ValueError as error:
            raise CheckpointError("this is not the name of a run", place=str(path), hint="start a new run") from error

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON file, whole or absent."""
        write_atomic(self.path / name, (json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """A JSON file of this folder, or None."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise CheckpointError(f"is damaged: {error}", place=str(path), hint="restore the file, or start a new run") from error

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows as json lines."""
        with open(self.path / name, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, allow_nan=False) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All whole lines of a json-lines file."""
        path = self.path / name
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def lengths(self) -> dict[str, int]:
        """Byte lengths of the files that a resume cuts back, flushed to the disk."""
        found = {}
        for name in CUT_BACK:
            path = self.path / name
            if path.exists():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                found[name] = path.stat().st_size
        return found

    def cut_back(self, lengths: Mapping[str, int]) -> None:
        """Cut json-lines files to the lengths of a checkpoint."""
        for name in CUT_BACK:
            path = self.path / name
            if path.exists():
                os.truncate(path, min(lengths.get(name, 0), path.stat().st_size))

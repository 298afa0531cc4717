"""Files that are whole or absent: written beside, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes began to write here and did not finish."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` so that after a crash at any moment ``path`` holds the old bytes or the new ones, never a part.

    ``sync=False`` leaves out the flush to the disk: still atomic for a killed process, not for a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if sync:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

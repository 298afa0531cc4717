"""The ledger of privacy charges: append-only, each entry on disk before anything noisy leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pppml_core.federation.files import sync_folder


class Ledger:
    """One JSON object a line. Resume never truncates it; a torn last line (a crash while charging) is completed by a line end.

    A torn charge was never followed by its contribution, because the contribution leaves after the sync; it is kept all the same, as a
    line ``entries`` reports as damaged, so that nothing ever disappears from the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one entry and return when it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists()
        with open(self.path, "ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(dict(entry), sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            sync_folder(self.path.parent)

    def entries(self) -> list[dict[str, Any]]:
        """All entries in order; a line that is no JSON map is ``{"damaged": text}``."""
        if not self.path.exists():
            return []
        out: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                entry = None
            out.append(entry if isinstance(entry, dict) else {"damaged": line})
        return out

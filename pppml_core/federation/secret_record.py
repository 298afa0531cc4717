"""What a party keeps of its own secrets where ``run.transcript`` is ``secrets``: for experiments on what coalitions can decode, only.

Files in the party's own folder, ``secrets/``, readable by its owner alone: of each attempt everything its session state ever held, of each
round what it put into the sum. They undo what a protocol forgets on purpose; a site's policy refuses to keep them unless it allows it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pppml_core.wire.codec import decode, encode

#: the value of ``run.transcript``.
SECRETS = "secrets"
#: what plan, console and report say of such a run, before anything else.
WARNING = (
    "SECRETS ARE KEPT (run.transcript: secrets): every party writes its keys, seeds and updates into the run's folder; whoever reads that "
    "folder reads all of them. For experiments on attacks only, never for real patients"
)
_LENGTH = struct.Struct("<Q")


class SecretRecord:
    """One party's.

    Args:
        folder: the party's own, of this run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / SECRETS

    def note(self, round: int, attempt: int, held: Mapping[str, Any]) -> None:
        """Add what a session state holds anew. Plain data, as the codec carries it."""
        if held:
            data = encode(dict(held))
            with open(self._file(f"{round:06d}-{attempt:06d}.states"), "ab", opener=_private) as file:
                file.write(_LENGTH.pack(len(data)) + data)

    def note_contribution(self, round: int, values: npt.NDArray[Any]) -> None:
        """Keep what this site puts into the sum of a round; made anew after a resume, it takes the place of the old one."""
        path = self._file(f"{round:06d}.contribution")
        beside = path.with_name(f".{path.name}.tmp")
        with open(beside, "wb", opener=_private) as file:
            file.write(encode(values))
        os.replace(beside, path)

    def states(self, round: int, attempt: int) -> dict[str, Any]:
        """Everything the party's state of an attempt ever held, see :func:`merged`; what was left half written is not there."""
        path = self.folder / f"{round:06d}-{attempt:06d}.states"
        data = path.read_bytes() if path.exists() else b""
        found, at = [], 0
        while at + _LENGTH.size <= len(data):
            end = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
            if end > len(data):
                break
            found.append(decode(data[at + _LENGTH.size : end]))
            at = end
        return merged(found)

    def contribution(self, round: int) -> npt.NDArray[Any] | None:
        """What the site put into the sum of a round; None: nothing."""
        path = self.folder / f"{round:06d}.contribution"
        values: npt.NDArray[Any] | None = decode(path.read_bytes()) if path.exists() else None
        return values

    def _file(self, name: str) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder / name


def merged(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All that is in any of these states, of one name the latest; maps within them are merged too. Nothing is ever forgotten."""
    out: dict[str, Any] = {}
    for state in states:
        for name, value in state.items():
            before = out.get(name)
            out[name] = merged((before, value)) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return out


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

"""Which starts of a run a site knows: a run begins, or begins anew, with a number of the coordinator's that no earlier start had.

A message is signed and can be recorded. Handed in again, one that says that the run begins must not end what the site is in.
"""

from __future__ import annotations

from pathlib import Path

from pppml_core.errors import CheckpointError, PolicyRefusal
from pppml_core.federation.files import write_atomic
from pppml_core.randomness import entropy

START_BYTES = 16
STARTS_FILE = "starts"


def new_start() -> bytes:
    """The number of a start, never used before."""
    return entropy(START_BYTES)


def begins(folder: Path, start: bytes) -> bool:
    """Whether the run begins with this now, which is then remembered in ``folder``; False where it has begun with it.

    Raises PolicyRefusal for an earlier start than the last one.
    """
    path = folder / STARTS_FILE
    data = path.read_bytes() if path.exists() else b""
    if len(data) % START_BYTES:
        raise CheckpointError("the site's record of starts is damaged", place=str(path), hint="restore the file, or start a new run")
    held = [data[i : i + START_BYTES] for i in range(0, len(data), START_BYTES)]
    if start in held[-1:]:
        return False
    if start in held:
        raise PolicyRefusal("this run was begun anew since this message was written")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, data + start)
    return True

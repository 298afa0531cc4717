"""How much memory something took at its peak, native libraries included."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """``bytes``: how far the process grew inside the block; None where the system does not tell (it does on Linux)."""

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """The growth of resident memory inside the block, from its beginning to its highest point.

    The system's own mark is set back and read, so what extensions allocate and free in between counts too.
    """
    found = Peak()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # else what was freed before is used first, and does not show
    try:
        _RESET.write_text("5")
        before = _kib("VmRSS")
    except OSError:
        yield found
        return
    yield found
    found.bytes = 1024 * max(0, _kib("VmHWM") - before)


def _kib(entry: str) -> int:
    match = re.search(rf"^{entry}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"{_STATUS} has no {entry}")
    return int(match[1])

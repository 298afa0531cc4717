"""Peak resident size of a process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak() -> int:
    """Of this process so far, MiB. Without ``/proc`` it is ``ru_maxrss``, which begins at the size of the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")) // 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest // (1024**2 if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB elsewhere

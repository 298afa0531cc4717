"""Starting and ending processes of NVFlare's. What it starts may be in a session of its own, and its client ignores Ctrl-C."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def run_until_stopped(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a process in the foreground; its exit code, 0 where SIGINT or SIGTERM stopped this one. It ends when this process does."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # it is being stopped already
        end_tree(process.pid, patience=5)
        for number, handler in before.items():
            signal.signal(number, handler)


def do_without_torch() -> None:
    """NVFlare loads torch for its own use where it finds it; a process that only carries frames is spared its seconds and its memory."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def _end_with_parent() -> None:
    """In the child: be told to end when the parent ends, however that happens. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_tree(pid: int, patience: float) -> None:
    """Ask a process to end (SIGTERM), then kill what is left of it and its descendants after ``patience`` seconds; 0: kill at once.

    Only a process of this user that is NVFlare's or pppml's is touched: a number from a file may be another's by now.
    """
    import psutil

    with suppress(psutil.Error):
        root = psutil.Process(pid)
        if root.uids().real != os.getuid() or not any("nvflare" in word for word in root.cmdline()):
            return
        tree = [*root.children(recursive=True), root]
        if patience > 0:
            root.terminate()
            psutil.wait_procs(tree, timeout=patience)
        for process in {*tree, *_children(tree)}:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(tree, timeout=10)


def _children(tree: list) -> list:  # type: ignore[type-arg]
    import psutil

    found = []
    for process in tree:
        with suppress(psutil.Error):
            found += process.children(recursive=True)
    return found

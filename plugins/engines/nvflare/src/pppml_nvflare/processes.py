"""Ending a process of NVFlare's with all that it started: it starts some in sessions of their own, which outlive a signal to its group."""

from __future__ import annotations

import os
from contextlib import suppress


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

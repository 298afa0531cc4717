"""The commands as an operator gives them, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from drilling.killer import FULL_AT, KILL_AT

HERE = Path(__file__).resolve().parent.parent
#: seconds; no command of a drill takes as long.
TOO_LONG = 1800
#: seconds for its last words to arrive.
END = 10


def environment(**more: str) -> dict[str, str]:
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


def write_config(path: Path, sections: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({**sections, "reporters": ["jsonl", "drilling.killer:Killer"]}))
    return path


def command(
    *arguments: str | Path, kill_at: Mapping[str, Any] | None = None, full_at: Mapping[str, Any] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """``pppml ...``; at the event that contains ``kill_at`` it is killed, at that of ``full_at`` it can write no file any more.

    What it says comes through pipes, as who can write no file can still speak; they are read no longer than it lives, though processes that
    it left behind may hold them.
    """
    line = [sys.executable, "-m", "pppml_core.cli", *map(str, arguments)]
    moments = {name: json.dumps(event) for name, event in ((KILL_AT, kill_at), (FULL_AT, full_at)) if event is not None}
    process = subprocess.Popen(line, env=environment(**moments, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said: dict[str, list[str]] = {"stdout": [], "stderr": []}
    readers = [threading.Thread(target=said[name].extend, args=(getattr(process, name),), daemon=True) for name in said]
    for reader in readers:
        reader.start()
    code = process.wait(TOO_LONG)
    for name, reader in zip(said, readers, strict=True):
        reader.join(END)
        if not reader.is_alive():
            getattr(process, name).close()
    return subprocess.CompletedProcess(line, code, *("".join(said[name]) for name in ("stdout", "stderr")))

"""The commands as an operator gives them, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from drilling.killer import FULL_AT, KILL_AT

HERE = Path(__file__).resolve().parent.parent
#: seconds; no command of a drill takes as long.
TOO_LONG = 1800


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

    What it says goes to files: a pipe would be waited for until the last process that it left behind has ended.
    """
    line = [sys.executable, "-m", "pppml_core.cli", *map(str, arguments)]
    moments = {name: json.dumps(event) for name, event in ((KILL_AT, kill_at), (FULL_AT, full_at)) if event is not None}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(line, env=environment(**moments, **more), stdout=out, stderr=err, timeout=TOO_LONG, check=False)
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(line, done.returncode, out.read(), err.read())

"""The commands as an operator gives them, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from drilling.killer import KILL_AT

HERE = Path(__file__).resolve().parent.parent
#: seconds; no command of a drill takes as long.
TOO_LONG = 600


def environment(**more: str) -> dict[str, str]:
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


def write_config(path: Path, sections: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({**sections, "reporters": ["jsonl", "drilling.killer:Killer"]}))
    return path


def command(*arguments: str | Path, kill_at: Mapping[str, Any] | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """``pppml ...``; with ``kill_at`` it is killed at the event that contains this map."""
    line = [sys.executable, "-m", "pppml_core.cli", *map(str, arguments)]
    about = environment(**more) if kill_at is None else environment(**{KILL_AT: json.dumps(kill_at)}, **more)
    return subprocess.run(line, env=about, capture_output=True, text=True, timeout=TOO_LONG, check=False)

"""An app folder that ``flwr run`` takes: the config, and two names that point into this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pppml_core.config.source import dump_yaml
from pppml_core.errors import ConfigError
from pppml_core.federation.files import write_atomic

_PROJECT = """\
# Written by `pppml export flower`. The code is in the installed packages pppml-flower and pppml-core; config.yaml says what is run.
#   flwr run {folder} SUPERLINK --run-config 'homes="FOLDER OF THE HOME OF server" out="RUN FOLDER"'
[project]
name = "{name}"
version = "1.0.0"
description = "A run of pppml"
license = {{ text = "not for distribution" }}
dependencies = ["flwr>=1.40,<2", "pppml-flower>=0.1,<0.2"]

[tool.flwr.app]
publisher = "pppml"

[tool.flwr.app.components]
serverapp = "pppml_app:app"
clientapp = "pppml_flower.client:app"

[tool.flwr.app.config]
# Paths at the machine of the SuperLink. Empty: runs/{run} in the SuperLink's working directory, and the variable PPPML_HOMES.
out = ""
homes = ""
"""
_APP = '''\
"""Runs config.yaml."""

from pathlib import Path

from pppml_flower.{module} import app_of

app = app_of({argument})
'''


def write_app(config: Mapping[str, Any], folder: Path) -> Path:
    """Write the app of a resolved config in plain form. Raises ConfigError where the folder is not empty, or flwr would refuse the app."""
    # Which machine it runs on is no part of the run.
    engine = {k: v for k, v in config["engine"].items() if k in ("use", "timeout", "wait", "poll")}
    files = {"config.yaml": dump_yaml({**config, "engine": engine})}
    return _write(folder, config["run"]["name"], "server", 'Path(__file__).parent / "config.yaml"', files)


def write_bridge(folder: Path) -> Path:
    """Write the app that hands the grid to a process of this machine; see :mod:`.bridge`."""
    return _write(folder, "bridge", "bridge", "", {})


def _write(folder: Path, run: str, module: str, argument: str, files: Mapping[str, str]) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("the folder is not empty", place=str(folder), hint="give a new one")
    name = re.sub(r"[^a-z0-9]+", "-", f"pppml-{run.lower()}").strip("-")
    app = _APP.format(module=module, argument=argument)
    if not argument:
        app = app.replace("from pathlib import Path\n\n", "").replace("Runs config.yaml.", "Lends the grid.")
    project = _PROJECT.format(name=name, folder=folder, run=run)
    for file, text in {"pyproject.toml": project, "pppml_app.py": app, **files}.items():
        write_atomic(folder / file, text.encode())
    return folder

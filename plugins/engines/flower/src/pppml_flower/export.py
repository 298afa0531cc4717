"""An app folder that ``flwr run`` takes: the config, and two names that point into this package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pppml_core.config.source import dump_yaml
from pppml_core.errors import ConfigError
from pppml_core.federation.files import write_atomic

_PROJECT = """\
# Written by `pppml export flower`. The code is in the installed packages pppml-flower and pppml-core; config.yaml says what is run.
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
clientapp = "{client}"

[tool.flwr.app.config]
# Paths at the machine of the SuperLink. Empty: runs/{run} in its working directory, and the home that it was started with.
out = ""
homes = ""
"""
_README = """\
# {run}, for Flower

The coordinator's people start it, where `flwr` knows their SuperLink by a name (here `hospitals`) and pppml-flower is installed:

    flwr run . hospitals --run-config 'out="/srv/runs/{run}"'

`out` is the run's folder, at the SuperLink's machine; a folder that holds this run unfinished is gone on with. The home of `server` is the
one that the SuperLink was started with (`pppml site run`), or `homes="FOLDER"` in the run config, for `FOLDER/server`.

The sites run their nodes already: `pppml site run --home HOME`. There is no code in this folder, and a node of pppml runs none that is
sent to it: everything is in the packages that are installed.
"""
_APP = '''\
"""Runs config.yaml."""

from pathlib import Path

from pppml_flower.{module} import app_of

app = app_of({argument})
'''


def write_app(config: Mapping[str, Any], folder: Path) -> Path:
    """Write the app of a resolved config in plain form. Raises ConfigError where the folder is not empty, or flwr would refuse the app."""
    files = {"config.yaml": dump_yaml(config), "README.md": _README.format(run=config["run"]["name"])}
    return _write(folder, config["run"]["name"], "server", 'Path(__file__).parent / "config.yaml"', files)


def write_bridge(folder: Path) -> Path:
    """Write the app that hands the grid to a process of this machine; see :mod:`.bridge`."""
    return _write(folder, "bridge", "lend", "", {})


def write_empty(folder: Path, stages: int, poll: float, sites: Sequence[str]) -> Path:
    """Write the app of :mod:`.empty`. Its run config: ``out``, the file to write, and ``homes``, the folder of the homes."""
    return _write(folder, "empty", "empty", f"{stages}, {poll}, {tuple(sites)}", {}, client="pppml_flower.echo:app")


def _write(folder: Path, run: str, module: str, argument: str, files: Mapping[str, str], client: str = "pppml_flower.client:app") -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("the folder is not empty", place=str(folder), hint="give a new one")
    name = re.sub(r"[^a-z0-9]+", "-", f"pppml-{run.lower()}").strip("-")
    app = _APP.format(module=module, argument=argument)
    if not files:
        app = app.replace("from pathlib import Path\n\n", "").replace("Runs config.yaml.", "Runs no config.")
    project = _PROJECT.format(name=name, run=run, client=client)
    for file, text in {"pyproject.toml": project, "pppml_app.py": app, **files}.items():
        write_atomic(folder / file, text.encode())
    return folder

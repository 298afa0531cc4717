"""The gate: a SuperNode that runs this package's handler for every message, and no code that a SuperLink sends.

Flower's own node unpacks the app that comes with a run and imports it. Here the process of a message is started through commands of ours
that stand before Flower's on its path: that of a ClientApp loads :mod:`.client` and leaves the app packed, those of every other kind of
app refuse. This rests on names inside flwr, so each is looked for first, and a flwr without them is not started at all.

Started as ``python -m pppml_flower.gate`` with the arguments of ``flower-supernode``; it ends when the process that started it ends.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pppml_core.engines.parties import end_with_parent

#: environment variable: seconds between two questions for work.
PATIENCE = "PPPML_FLOWER_PATIENCE"
#: exit code of a node that was connected and whose connection Flower has given up.
LOST = 75
_CLIENT_APP = "flwr-clientapp"
#: option with which Flower tells the process of a message who started it.
_PARENT = "--parent-pid"
_OTHERS = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
_UNKNOWN = "this version of flwr has {}, and pppml-flower does not know how to keep it in bounds: use a tested version"
_COMMAND = """\
#!{python}
from pppml_flower.gate import {function}

{function}()
"""


def refusals(folder: Path, python: str = sys.executable) -> None:
    """Write the commands that a node of ours finds before Flower's."""
    folder.mkdir(parents=True)
    for name in (_CLIENT_APP, *_OTHERS):
        path = folder / name
        path.write_text(_COMMAND.format(python=python, function="client_app" if name == _CLIENT_APP else "refuse"))
        path.chmod(0o700)


def refuse() -> None:
    """The command of an app that no site runs."""
    sys.exit("this site runs the handler of pppml-flower only; another kind of app was refused")


def client_app() -> None:
    """``flwr-clientapp`` with the handler that is installed here, whatever app came with the run.

    Flower's own interrupts itself when its node is gone, once; where that comes to nothing it asks for ever a server that is no more.
    """
    end_with_parent(int(sys.argv[sys.argv.index(_PARENT) + 1]) if _PARENT in sys.argv else None)
    runtime = module_with("flwr.supernode.runtime.run_clientapp", "install_from_fab", "get_load_client_app_fn", "install_app_dependencies")
    runtime.install_from_fab = lambda *given, **settings: None
    runtime.install_app_dependencies = _never
    runtime.get_load_client_app_fn = lambda **settings: _own_app
    module_with("flwr.supernode.cli", "flwr_clientapp").flwr_clientapp()


def _own_app(fab_id: str, fab_version: str, fab_hash: str) -> Any:
    from pppml_flower.client import app

    return app


def _never(*given: Any, **settings: Any) -> None:
    raise RuntimeError("a site installs nothing that a run asks for")


def super_node() -> None:
    """``flower-supernode``; it asks for work as often as it was told, and ends with the process that started it, or with its connection.

    Flower tries a connection again and again, but gives it up for good where it was cut within a TLS handshake. Then its node asks nobody
    any more, and its process stays, for a server of its own that nobody needs.
    """
    commands = module_with("flwr.supercore.constant", "TASK_TYPE_TO_COMMAND").TASK_TYPE_TO_COMMAND
    if unknown := sorted(set(commands.values()) - {_CLIENT_APP, *_OTHERS}):
        sys.exit(_UNKNOWN.format(f"commands of its own, {', '.join(unknown)}"))
    module_with("flwr.supernode.runtime.run_clientapp", "install_from_fab", "get_load_client_app_fn", "install_app_dependencies")
    end_with_parent()
    _ask_more_often()
    module_with("flwr.supernode.cli", "flower_supernode").flower_supernode()
    sys.stderr.flush()
    os._exit(LOST)


def module_with(name: str, *needed: str) -> Any:
    """A module inside flwr, which must have these names."""
    try:
        module = import_module(name)
    except ImportError:
        sys.exit(_UNKNOWN.format(f"no {name}"))
    if missing := [one for one in needed if not hasattr(module, one)]:
        sys.exit(_UNKNOWN.format(f"no {', '.join(missing)} in {name}"))
    return module


def _ask_more_often() -> None:
    """Flower's node rests three seconds whenever there was no work, which is most of the time of a short stage."""
    patience = float(os.environ.get(PATIENCE, "3"))
    loop = import_module("flwr.supernode.start_client_internal")
    if hasattr(loop, "time"):
        loop.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, patience)))  # type: ignore[attr-defined]


if __name__ == "__main__":
    super_node()

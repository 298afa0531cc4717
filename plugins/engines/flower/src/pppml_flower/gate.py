"""The gate: a SuperNode that runs this package's handler for every message, and no code that a SuperLink sends.

Flower's own node unpacks the app that comes with a run and imports it. Here commands of ours stand before Flower's on its path: that of
the executor (:mod:`.executor`) starts :mod:`.client` for each message and leaves the app packed, those of every kind of app refuse. This
rests on names inside flwr, so each is looked for first, and a flwr without them is not started at all.

Whatever in a node of Flower's may fail and leave the rest of it waiting for ever ends it here, so that it can be started again.

Started as ``python -m pppml_flower.gate`` with the arguments of ``flower-supernode``; it ends when the process that started it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from pppml_core.engines.parties import end_with_parent

#: environment variable: seconds between two questions for work.
PATIENCE = "PPPML_FLOWER_PATIENCE"
#: environment variable: number of the process that starts this one, from itself.
STARTER = "PPPML_FLOWER_STARTER"
#: exit code of a node that Flower has given up, or a part of it.
LOST = 75
#: seconds for a node that is being stopped, whose parts may end before it.
_GRACE = 5.0
#: Flower's commands for a message and for what starts it; and those of other apps.
CLIENT_APP, _EXECUTOR = "flwr-clientapp", "flower-superexec"
_OTHERS = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
_LOOP = "flwr.supernode.start_client_internal"
_UNKNOWN = "this version of flwr has {}, and pppml-flower does not know how to keep it in bounds: use a tested version"
# The fork server loads the script that it is started by, under another name.
_COMMAND = """\
#!{python}
if __name__ == "__main__":
    from pppml_flower.{module} import {function}

    {function}()
"""


def refusals(folder: Path, python: str = sys.executable) -> None:
    """Write the commands that a node of ours finds before Flower's."""
    folder.mkdir(parents=True)
    for name in (_EXECUTOR, CLIENT_APP, *_OTHERS):
        module, function = ("executor", "executor") if name == _EXECUTOR else ("gate", "refuse")
        path = folder / name
        path.write_text(_COMMAND.format(python=python, module=module, function=function))
        path.chmod(0o700)


def refuse() -> None:
    """The command of an app that no site runs."""
    sys.exit("this site runs the handler of pppml-flower only; another kind of app was refused")


def super_node() -> None:
    """``flower-supernode``; it asks for work as often as it was told, and ends with the process that started it, or with its connection.

    Flower tries a connection again and again, but gives it up for good where it was cut within a TLS handshake, or the SuperLink answered
    that it failed. Then its node asks nobody any more, and its process stays, for a server of its own that nobody needs.
    """
    end_with_starter()
    commands = module_with("flwr.supercore.constant", "TASK_TYPE_TO_COMMAND").TASK_TYPE_TO_COMMAND
    if unknown := sorted(set(commands.values()) - {CLIENT_APP, *_OTHERS}):
        sys.exit(_UNKNOWN.format(f"commands of its own, {', '.join(unknown)}"))
    import_module("pppml_flower.executor").look()
    threading.excepthook = _end_with_a_thread
    _end_with_the_executor()
    _ask_more_often()
    try:
        module_with("flwr.supernode.cli", "flower_supernode").flower_supernode()
    except Exception:
        traceback.print_exc()
    leave(LOST)


def end_with_starter() -> None:
    """End with the process that started this one, which says its number in the environment: it may have ended before this looks."""
    given = os.environ.pop(STARTER, None)
    end_with_parent(int(given) if given else None)


def leave(code: int) -> NoReturn:
    """End at once, whatever else this process waits for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_soon() -> None:
    time.sleep(_GRACE)
    leave(LOST)


def _end_with_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Without the thread of its heartbeats a node counts as gone after a minute, and asks for work nobody gives it."""
    threading.__excepthook__(failed)
    # A node whose key is not known any more (401) stops by itself, for good.
    refused = getattr(getattr(failed.exc_value, "response", None), "status_code", None) == 401
    if not refused and not issubclass(failed.exc_type, SystemExit):
        _leave_soon()


def _end_with_the_executor() -> None:
    """Without it a node takes messages that nobody answers."""
    loop = module_with(_LOOP, "subprocess")

    def started(command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, **settings)

        def watch() -> None:
            print(f"{_EXECUTOR} has ended (exit code {process.wait()})", file=sys.stderr, flush=True)
            _leave_soon()

        threading.Thread(target=watch, name="pppml-executor", daemon=True).start()
        return process

    loop.subprocess = SimpleNamespace(Popen=started)


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
    loop = import_module(_LOOP)
    if hasattr(loop, "time"):
        loop.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, patience)))  # type: ignore[attr-defined]


if __name__ == "__main__":
    super_node()

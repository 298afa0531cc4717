"""The gate: a SuperNode that runs this package's handler for every message, and no code that a SuperLink sends.

Flower's own node unpacks the app that comes with a run and imports it. Here it starts an executor of ours (:mod:`.executor`), which runs
:mod:`.client` for each message, leaves the app packed, and refuses every other kind of app. This rests on names inside flwr, so each is
looked for first, and a flwr without them is not started at all.

Whatever in a node of Flower's may fail and leave the rest of it waiting for ever ends it here, so that it can be started again.

Started as ``python -m pppml_flower.gate`` with the arguments of ``flower-supernode``; it ends when the process that started it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NoReturn

from pppml_core.engines.parties import end_with_parent

#: environment variable: seconds between two questions for work.
PATIENCE = "PPPML_FLOWER_PATIENCE"
#: environment variable: number of the process that starts this one, from itself.
STARTER = "PPPML_FLOWER_STARTER"
#: exit code of a node that Flower has given up, or a part of it.
LOST = 75
#: seconds for a node to take its leave; after five Flower would end it, as if all were well.
_GRACE = 4.0
#: those that end a process of Flower's.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
#: Flower's command that starts the processes of messages, and what is started in its place: never what is found by its name, nor anything
#: that lies in the folder where the site was started.
_EXECUTOR = "flower-superexec"
_OURS = (sys.executable, "-P", "-c", "from pppml_flower.executor import executor; executor()")
_LOOP = "flwr.supernode.start_client_internal"
_UNKNOWN = "this version of flwr has {}, and pppml-flower does not know how to keep it in bounds: use a tested version"


def super_node() -> None:
    """``flower-supernode``; it asks for work as often as it was told, and ends with the process that started it, or with its connection.

    Flower tries a connection again and again, but gives it up for good where it was cut within a TLS handshake, or the SuperLink answered
    that it failed. Then its node asks nobody any more, and its process stays, for a server of its own that nobody needs.
    """
    end_with_starter()
    import_module("pppml_flower.executor").look()
    threading.excepthook = _end_with_a_thread
    _with_an_executor_of_ours()
    _stop_once()
    _ask_more_often()
    try:
        module_with("flwr.supernode.cli", "flower_supernode").flower_supernode()
    except SystemExit:
        if not _given_up.is_set():
            raise
    except Exception:
        complain()  # before it was ever connected: what comes later it keeps to itself
        leave(1)
    leave(LOST)


def bare_node() -> None:
    """Flower's own, which runs what is sent; it asks for work as often as ours. For a federation on one machine, to compare with."""
    end_with_starter()
    _ask_more_often()
    module_with("flwr.supernode.cli", "flower_supernode").flower_supernode()


def end_with_starter() -> None:
    """End with the process that started this one, which says its number in the environment: it may have ended before this looks."""
    given = os.environ.pop(STARTER, None)
    end_with_parent(int(given) if given else None)


def leave(code: int) -> NoReturn:
    """End at once, whatever else this process waits for, and also where nothing more can be printed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def say(text: str) -> None:
    """Print for the people of this site, where that is possible."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def complain() -> None:
    """Print the error that is being handled, as :func:`say`."""
    say(traceback.format_exc())


_given_up = threading.Event()


def _give_up() -> None:
    """End this node. It takes its leave of the SuperLink where it can, which then lets another one in at once."""
    _given_up.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    leave(LOST)


def _end_with_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Without the thread of its heartbeats a node counts as gone after a minute, and asks for work nobody gives it."""
    with suppress(OSError, ValueError):
        threading.__excepthook__(failed)
    # A node whose signature is not known (401) is interrupted by Flower, and takes its leave.
    refused = getattr(getattr(failed.exc_value, "response", None), "status_code", None) == 401
    if not refused and not issubclass(failed.exc_type, SystemExit):
        threading.Thread(target=_give_up, daemon=True).start()  # who takes its leave waits for this thread to end


def module_with(name: str, *needed: str) -> Any:
    """A module inside flwr, which must have these names."""
    try:
        module = import_module(name)
    except ImportError:
        sys.exit(_UNKNOWN.format(f"no {name}"))
    if missing := [one for one in needed if not hasattr(module, one)]:
        sys.exit(_UNKNOWN.format(f"no {', '.join(missing)} in {name}"))
    return module


def _with_an_executor_of_ours() -> None:
    """In place of Flower's. A node whose executor has ended takes messages that nobody answers, so it ends too."""

    def started(command: list[str]) -> None:
        if command[0] != _EXECUTOR:
            say(_UNKNOWN.format(f"a command of its own, {command[0]}"))
            leave(1)
        process = subprocess.Popen([*_OURS, *command[1:]])

        def watch() -> None:
            say(f"{_EXECUTOR} has ended (exit code {process.wait()})")
            _give_up()

        threading.Thread(target=watch, name="pppml-executor", daemon=True).start()

    module_with(_LOOP, "subprocess").subprocess = SimpleNamespace(Popen=started)


def _stop_once() -> None:
    """A second signal would kill a node that takes its leave of the SuperLink, which then held it for connected for a minute."""
    loop = module_with(_LOOP, "register_signal_handlers")
    register = loop.register_signal_handlers

    def registered(**settings: Any) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # Flower puts back what it finds, when the first one comes
        register(**settings)

    loop.register_signal_handlers = registered


def _ask_more_often() -> None:
    """Flower's node rests three seconds whenever there was no work, which is most of the time of a short stage."""
    patience = float(os.environ.get(PATIENCE, "3"))
    loop = import_module(_LOOP)
    if hasattr(loop, "time"):
        loop.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, patience)))  # type: ignore[attr-defined]


if __name__ == "__main__":
    super_node()

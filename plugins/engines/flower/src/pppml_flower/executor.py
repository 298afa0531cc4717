"""The executor of a node: it starts a process for each message, which runs the handler that is installed here.

Flower's own starts an interpreter for every message, which loads Flower: 1.5 to 2.8 s of processor time. Here a fork server
(:mod:`multiprocessing`) has loaded it already. It holds nothing of the site, and neither does the process of a message before it asks.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from types import SimpleNamespace
from typing import Any

from pppml_core.engines.parties import end_with_parent
from pppml_flower.gate import CLIENT_APP, leave, module_with

#: option with which Flower tells a process who started it.
_PARENT = "--parent-pid"
#: where Flower starts the process of a message, and its work in there; and what of both is replaced.
_LAUNCH, _WORK = "flwr.supercore.superexec.executor.subprocess_executor", "flwr.supernode.runtime.run_clientapp"
_IN_WORK = ("pull_task_input", "install_from_fab", "get_load_client_app_fn", "install_app_dependencies")


def look() -> None:
    """End where this flwr lacks a name that is needed here."""
    module_with(_LAUNCH, "subprocess")
    module_with(_WORK, *_IN_WORK)


def executor() -> None:
    """``flower-superexec``, which ends with its node: by itself it interrupts itself once, may miss that, and then asks for ever."""
    end_with_parent(int(sys.argv[sys.argv.index(_PARENT) + 1]) if _PARENT in sys.argv else None)
    look()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_WORK, "flwr.supernode.cli", "pppml_flower.client", __name__])
    forkserver.ensure_running()
    module_with(_LAUNCH, "subprocess").subprocess = SimpleNamespace(Popen=partial(_start, context), DEVNULL=subprocess.DEVNULL)
    module_with("flwr.supercore.cli", "flower_superexec").flower_superexec()


def _start(context: ForkServerContext, command: Sequence[str], **settings: Any) -> None:
    """In place of a command: the process of a message is forked, and what else there is refuses."""
    if command[0] == CLIENT_APP:
        context.Process(target=client_app, args=(command,), daemon=True).start()
    else:
        subprocess.Popen(command, **settings)


def client_app(command: Sequence[str]) -> None:
    """``flwr-clientapp`` with the handler that is installed here, whatever app came with the run. It ends with the executor."""
    threading.Thread(target=_end_with_the_executor, name="pppml-executor", daemon=True).start()
    sys.argv = list(command)
    work = module_with(_WORK, *_IN_WORK)
    work.pull_task_input = _or_end(work.pull_task_input)
    work.install_from_fab = lambda *given, **settings: None
    work.install_app_dependencies = _never
    work.get_load_client_app_fn = lambda **settings: _own_app
    module_with("flwr.supernode.cli", "flwr_clientapp").flwr_clientapp()


def _end_with_the_executor() -> None:
    if (starter := multiprocessing.parent_process()) is not None:
        starter.join()
        os._exit(1)


def _or_end(pull: Callable[..., Any]) -> Callable[..., Any]:
    """A message that cannot be read ends its process, as if it had been killed: Flower's node then answers that it is lost. Told politely
    that it failed, it would answer nothing, and wait for that answer for ever.
    """

    def pulled(*given: Any) -> Any:
        try:
            return pull(*given)
        except Exception:
            traceback.print_exc()
            leave(1)

    return pulled


def _own_app(fab_id: str, fab_version: str, fab_hash: str) -> Any:
    from pppml_flower.client import app

    return app


def _never(*given: Any, **settings: Any) -> None:
    raise RuntimeError("a site installs nothing that a run asks for")

"""The executor of a node: it starts a process for each message, which runs the handler that is installed here, and nothing else.

Flower's own starts an interpreter for every message, which loads Flower: 1.5 to 2.8 s of processor time. Here a fork server
(:mod:`multiprocessing`) has loaded it already. It holds nothing of the site, and neither does the process of a message before it asks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from types import SimpleNamespace
from typing import Any

from pppml_core.engines.parties import end_with_parent
from pppml_flower.gate import SIGNALS, complain, leave, module_with, say

#: Flower's command for a message.
_CLIENT_APP = "flwr-clientapp"
#: option with which Flower tells a process who started it.
_PARENT = "--parent-pid"
#: where Flower starts the process of a message, and its work in there; and what of both is replaced.
_LAUNCH, _WORK = "flwr.supercore.superexec.executor.subprocess_executor", "flwr.supernode.runtime.run_clientapp"
_AT_WORK = ("pull_task_input", "push_message", "push_task_output", "register_signal_handlers")
_NOT_DONE = ("install_from_fab", "get_load_client_app_fn", "install_app_dependencies")
#: what the process of a message says to the executor before it takes the message, and once it has it; before it answers, and once it has.
_BEGUN, _DONE = b"begun", b"done"


def look() -> None:
    """End where this flwr lacks a name that is needed here, or any user of the machine could speak to the fork server (CVE-2022-42919)."""
    if sys.version_info < (3, 11, 1):
        sys.exit("pppml-flower needs Python 3.11.1 or later")
    module_with(_LAUNCH, "subprocess")
    module_with(_WORK, *_AT_WORK, *_NOT_DONE)


def executor() -> None:
    """``flower-superexec``, which ends with its node: by itself it interrupts itself once, may miss that, and then asks for ever."""
    end_with_parent(int(sys.argv[sys.argv.index(_PARENT) + 1]) if _PARENT in sys.argv else None)
    look()
    os.chdir("/")  # each process of a message goes there, and who started the site may have been where its user may not
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_WORK, "flwr.supernode.cli", "pppml_flower.client", __name__])
    forkserver.ensure_running()
    module_with(_LAUNCH, "subprocess").subprocess = SimpleNamespace(Popen=partial(_start, context), DEVNULL=subprocess.DEVNULL)
    module_with("flwr.supercore.cli", "flower_superexec").flower_superexec()


def _start(context: ForkServerContext, command: Sequence[str], **settings: Any) -> None:
    """In place of a command. Another kind of app ends the node: by itself it would wait for ever for what that app answers."""
    if command[0] != _CLIENT_APP:
        say(f"this site runs the handler of pppml-flower only; {command[0]} was refused")
        leave(1)
    try:
        heard, line = context.Pipe(duplex=False)
        with line:
            context.Process(target=client_app, args=(command, line), daemon=True).start()
    except (OSError, EOFError):
        complain()  # there is no room for a process; Flower's node has it started again
        return
    threading.Thread(target=_watch, args=(heard,), name="pppml-message", daemon=True).start()


def _watch(heard: Connection) -> None:
    """What ends while it takes a message, or answers, leaves Flower's node waiting for ever, or one answer behind: so the node ends too."""
    last = b""
    with heard, suppress(EOFError):
        while True:
            last = heard.recv_bytes()
    if last == _BEGUN:
        say("the process of a message has ended before Flower's node had all of its answer")
        leave(1)


def client_app(command: Sequence[str], line: Connection) -> None:
    """``flwr-clientapp`` with the handler that is installed here, whatever app came with the run. It ends with the executor."""
    threading.Thread(target=_end_with_the_executor, name="pppml-executor", daemon=True).start()
    line.send_bytes(_BEGUN)
    sys.argv = list(command)
    work = module_with(_WORK, *_AT_WORK, *_NOT_DONE)
    work.pull_task_input = _or_end(partial(_taken, work.pull_task_input, line))
    work.push_message = _or_end(partial(_answered, work.push_message, line))
    work.push_task_output = partial(_finished, work.push_task_output, line)
    work.register_signal_handlers = partial(_registered, work.register_signal_handlers)
    work.install_from_fab = lambda *given, **settings: None
    work.install_app_dependencies = _never
    work.get_load_client_app_fn = lambda **settings: _own_app
    module_with("flwr.supernode.cli", "flwr_clientapp").flwr_clientapp()


def _end_with_the_executor() -> None:
    if (starter := multiprocessing.parent_process()) is not None:
        starter.join()
        os._exit(1)


def _or_end(work: Callable[..., Any]) -> Callable[..., Any]:
    """A message that cannot be read, or answered, ends its process as if it had been killed, and so the node (:func:`_watch`). Told
    politely that it failed, Flower's node would answer nothing, and wait for that answer for ever.
    """

    def done(*given: Any) -> Any:
        try:
            return work(*given)
        except Exception:
            complain()
            leave(1)

    return done


def _taken(pull: Callable[..., Any], line: Connection, client: Any) -> Any:
    taken = pull(client)
    line.send_bytes(_DONE)
    return taken


def _answered(push: Callable[..., None], line: Connection, *given: Any) -> None:
    line.send_bytes(_BEGUN)
    push(*given)


def _finished(push: Callable[..., None], line: Connection, client: Any, context: Any, **given: Any) -> None:
    """Flower's node is told that the message is dealt with; then Flower interrupts a process of which it hears again, and that is no harm.
    Without a context there was no message yet, and no answer.
    """

    def told(request: Any) -> Any:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        answer = client.PushTaskOutput(request)
        if context is not None:
            line.send_bytes(_DONE)
        return answer

    push(client=SimpleNamespace(PushTaskOutput=told), context=context, **given)


def _registered(register: Callable[..., None], **settings: Any) -> None:
    """What Flower does at the end is done; a signal ends the process without a word, for the same reason."""
    register(**settings)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _own_app(fab_id: str, fab_version: str, fab_hash: str) -> Any:
    from pppml_flower.client import app

    return app


def _never(*given: Any, **settings: Any) -> None:
    raise RuntimeError("a site installs nothing that a run asks for")

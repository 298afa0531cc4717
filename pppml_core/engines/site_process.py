"""The process of one site in the engine `processes`: started as ``python -m pppml_core.engines.site_process``.

Standard input brings one frame: where the coordinator listens, a one-time token, and the job; never the command line or the environment,
which others can read. Everything else passes the socket. A thread reads it all the time, so that the process ends at once, in the middle
of training too, when the coordinator is gone.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pppml_core.engines.sockets import Line, knock
from pppml_core.engines.worker import read_frame

if TYPE_CHECKING:
    from pppml_core.engines.local import InProcess

Requests = queue.SimpleQueue[tuple[int, bytes]]


def main() -> int:
    """Serve one site until the coordinator hangs up."""
    # Ctrl-C reaches every process of the terminal; the coordinator deals with it and hangs up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from pppml_core.wire.codec import decode, encode

    settings = decode(read_frame(sys.stdin.buffer))
    sys.stdin.close()
    # Whatever a library prints is not for the console of the run.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    line = knock(settings["port"], settings["token"])
    requests: Requests = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(line, requests), name="pppml-line", daemon=True).start()

    sys.path[:] = [*settings["path"], *[p for p in sys.path if p not in settings["path"]]]
    about, transport = _report(None, partial(_begin, settings))
    line.send(0, encode(about), b"")
    if about["error"]:
        return 1
    assert transport is not None
    while True:
        number, frame = requests.get()
        about, reply = _report(transport, partial(_answer, transport, settings["site"], frame))
        line.send(number, encode(about), reply or b"")


def _listen(line: Line, requests: Requests) -> None:
    try:
        while True:
            number, _, frame = line.receive()
            requests.put((number, frame))
    except (OSError, EOFError):
        os._exit(0)  # every file of a site is whole or absent, whenever its process ends


def _begin(settings: dict[str, Any]) -> InProcess:
    from pppml_core.engines.local import InProcess
    from pppml_core.errors import ConfigError
    from pppml_core.federation.own_parts import own_parts
    from pppml_core.interfaces.engine import Job
    from pppml_core.registry import Registry

    homes = Path(settings["homes"]) if settings["homes"] else None
    sites, sizes = tuple(settings["sites"]), settings["sizes"]
    job = Job(settings["run"], settings["config"], Path(settings["folder"]), sites, sizes, {}, homes)
    if homes is not None:
        parts, site = own_parts(job, settings["site"], Registry.discover()), settings["site"]
        if (held := len(parts.load(site).train)) != sizes[site]:
            raise ConfigError(f"the run counts on {sizes[site]} training examples of {site}, which has {held}", place="sites")
        job = replace(job, parts=parts)
    transport = InProcess(job, amnesia=False)
    transport.site(settings["site"])
    return transport


def _answer(transport: InProcess, site: str, frame: bytes) -> bytes:
    ((_, reply),) = transport.deliver([(site, frame)])
    assert isinstance(reply, bytes)
    return reply


def _report(transport: InProcess | None, work: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """What came of ``work``, and what the coordinator is told besides: seconds spent so far, or what went wrong."""
    from pppml_core.errors import PppmlError

    told: dict[str, Any] = {"error": "", "place": "", "hint": "", "code": 0, "traceback": ""}
    result = None
    try:
        result = work()
    except PppmlError as error:
        told = {"error": error.message, "place": error.place or "", "hint": error.hint or "", "code": error.exit_code}
        told["traceback"] = traceback.format_exc()[-100_000:]
    except Exception as error:
        # Whatever it is, it is told to the coordinator, which ends the run with the reason.
        told |= {"error": f"{type(error).__name__}: {error}"[:10_000], "code": 1, "traceback": traceback.format_exc()[-100_000:]}
    return {"clock": dict(transport.clock()) if transport is not None else {}, **told}, result


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, EOFError):
        sys.exit(0)  # the coordinator went away

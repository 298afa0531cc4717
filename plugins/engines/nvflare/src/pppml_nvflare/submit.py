"""Submits a job and stays with it: ``python -m pppml_nvflare.submit KIT JOB SITES SECONDS``, SITES joined by commas.

Prints one JSON object a line: ``{"job": id}``, then ``{"status": ...}`` whenever it changes, and now and then when the server last heard of
each client: ``{"heard": {name: seconds since the epoch}}``. When its input ends, and that is also when whoever started it is killed, the
job is aborted where it still runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

POLL = 0.5
#: polls between two looks at which clients are connected.
LOOK = 6


def main() -> int:
    """Until the job has ended or nobody wants it any more."""
    kit, job, names, seconds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), float(sys.argv[4])
    out = sys.stdout
    sys.stdout = io.StringIO()  # NVFlare's session prints
    unwanted = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        unwanted.set()

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=out, flush=True)

    threading.Thread(target=listen, daemon=True).start()
    try:
        session = _session(kit, time.monotonic() + seconds, unwanted)
        _await_clients(session, names, time.monotonic() + seconds, unwanted)
        found = session.submit_job(str(job))
        tell(job=found)
        status, polls = "", 0
        while not unwanted.wait(POLL):
            polls += 1
            if polls % LOOK == 0:
                tell(heard={client.name: client.last_connect_time for client in session.get_system_info().client_info})
            now = str(session.get_job_status(found))
            if now != status:
                status = now
                tell(status=status)
            if status.startswith("FINISHED"):
                break
        else:
            _end(session, found)
        session.close()
    except Exception as error:
        tell(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _session(kit: Path, deadline: float, unwanted: threading.Event) -> Any:
    from nvflare.fuel.flare_api.flare_api import new_secure_session  # type: ignore[import-untyped]

    user = json.loads((kit / "startup" / "fed_admin.json").read_text())["admin"]["username"]
    while True:
        try:
            return new_secure_session(user, str(kit))
        except Exception:  # NVFlare raises many things until its server answers; at the deadline the last of them goes on
            if time.monotonic() > deadline or unwanted.wait(POLL):
                raise


def _await_clients(session: Any, names: list[str], deadline: float, unwanted: threading.Event) -> None:
    """Return when all are there, or the time is up: then the job begins with those that are."""
    while time.monotonic() < deadline and not unwanted.wait(POLL):
        connected = {client.name for client in session.get_system_info().client_info}
        if set(names) <= connected:
            return


def _end(session: Any, job: str) -> None:
    """Give a job that is ending by itself a moment, then abort it, and return when it is over."""
    for moment in range(60):
        if str(session.get_job_status(job)).startswith("FINISHED"):
            return
        if moment == 10:
            with contextlib.suppress(Exception):
                session.abort_job(job)
        time.sleep(POLL)


if __name__ == "__main__":
    sys.exit(main())

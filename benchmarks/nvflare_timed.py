"""Both sides of an NVFlare job that times itself, then lets the coordinator do so; for :mod:`engines`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from engines import frames, seconds
from nvflare.collab import collab

from pppml_core.engines.parties import HOMES
from pppml_nvflare.bridge import serve
from pppml_nvflare.calls import Caller
from pppml_nvflare.server import CallTransport, _do
from pppml_nvflare.site import Desk


class Beside(Desk):
    """A site's desk, and beside it the same site without one: what a direct call of it would cost."""

    def __init__(self) -> None:
        super().__init__()
        del sys.modules["torch"]
        self._resident: Any = None

    @collab.publish
    def direct(self, frame: bytes) -> bytes:
        """The site's reply, in this process and in this call."""
        if self._resident is None:
            from pppml_core.federation.resident import Resident

            self._resident = Resident(Path(os.environ[HOMES]) / f"{collab.site_name}_direct")
        reply: bytes = self._resident.receive(frame)
        return reply


class Timed:
    """The server side. NVFlare makes it when the job begins."""

    def __init__(self, bridge: str, out: str, times: int) -> None:
        self.bridge, self.out, self.times = bridge, out, times

    @collab.main
    def conduct(self) -> None:
        """Own calls and stages in turns."""
        proxies = {client.name: client for client in collab.clients}
        caller, context = Caller(proxies, timeout=60.0, silence=30.0), collab.context
        transport = CallTransport(caller, len(proxies))
        asked = frames(proxies)
        goes = {
            "own, empty": lambda: collab.clients.answer(request=b""),
            "own, of the site": lambda: collab.clients.direct(frame=asked[0][1]),
            "stage": lambda: list(transport.deliver(asked)),
        }
        for go in goes.values():
            go()  # what is imported and started on the way
        rows: dict[str, list[float]] = {name: [] for name in goes}
        for _ in range(self.times + 5):
            for name, go in goes.items():
                rows[name].append(seconds(go))
        Path(self.out).write_text(json.dumps({name: times[5:] for name, times in rows.items()}))
        serve(self.bridge, lambda one: _do(caller, one), lambda: bool(context.is_aborted()))

"""Both sides of an NVFlare job that times its own calls when it is asked to; for :mod:`engines`."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines import LINE, hello, seconds
from nvflare.collab import collab
from nvflare.collab.api.context import set_call_context

from pppml_core.engines.parties import HOMES
from pppml_core.engines.remote import Signed
from pppml_core.errors import RunFailed
from pppml_core.federation.identity import load_identity
from pppml_core.interfaces.engine import Walk
from pppml_core.wire.messages import SERVER
from pppml_nvflare.bridge import serve
from pppml_nvflare.calls import Caller
from pppml_nvflare.server import CallTransport, _do
from pppml_nvflare.site import Door


class Beside(Door):
    """A site's door, and beside it a function that puts a line on the disk."""

    @collab.publish
    def synced(self, line: bytes) -> bytes:
        """Nothing, once the line is on the disk."""
        with open(Path(os.environ[HOMES]) / f"{collab.site_name}.lines", "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return b""


def answered(replies: Any) -> None:
    """Raise RunFailed where a site's function failed: a group call goes on without it."""
    if any(reply != b"" for _, reply in replies):
        raise RunFailed(f"NVFlare's own call failed: {dict(replies)}")


class Timed:
    """The server side. NVFlare makes it when the job begins."""

    def __init__(self, bridge: str) -> None:
        self.bridge = bridge

    @collab.main
    def conduct(self) -> None:
        """What the coordinator asks, and how long this takes where it names one of these."""
        clients = collab.clients
        proxies = {client.name: client for client in clients}
        caller, context = Caller(proxies, timeout=60.0, silence=30.0), collab.context
        transport = Signed(CallTransport(caller, len(proxies)), load_identity(Path(os.environ[HOMES]) / SERVER))
        asked = hello(proxies)
        timed: dict[str, Callable[[], Any]] = {
            "own, empty": lambda: answered(clients.answer(request=b"")),
            "own, with a line on the disk": lambda: answered(clients.synced(line=bytes(LINE))),
            "stage": lambda: list(transport.deliver(asked)),
        }

        def do(one: dict[str, Any]) -> Walk:
            set_call_context(context)  # of this thread
            return Walk("", struct.pack("<d", seconds(timed[one["site"]]))) if one["site"] in timed else _do(caller, one)

        serve(self.bridge, do, lambda: bool(context.is_aborted()))

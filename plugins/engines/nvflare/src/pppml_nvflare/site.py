"""What NVFlare's client process of a site holds: one published function, bytes to bytes, and the process in which the site lives.

The function waits at most a turn; work goes on in a thread of its own, and its answer is kept for whoever holds the ticket. It never
raises: what NVFlare makes of an exception, traceback included, would travel to the server.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.collab import collab  # type: ignore[import-untyped]

from pppml_core.errors import PppmlError, WireError
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.codec import decode, decode_message
from pppml_core.wire.messages import SERVER
from pppml_nvflare.calls import TURN, Caller, replied
from pppml_nvflare.forms import write_walk
from pppml_nvflare.homes import own_home
from pppml_nvflare.lodging import Gone, Lodging
from pppml_nvflare.processes import do_without_torch

#: answers that are kept for who asks again.
KEPT = 8
_FORM = {"ticket": bytes, "timeout": float, "silence": float, "path": list, "bridge": bool}


class _Work:
    """One frame that was handed over, and what came of it."""

    def __init__(self) -> None:
        self.answer = b""
        self.done = threading.Event()

    def finish(self, found: Walk) -> None:
        """This came of it."""
        self.answer = write_walk(found)
        self.done.set()


class Desk:
    """Takes the calls of one site. NVFlare makes it, when a job begins."""

    def __init__(self) -> None:
        self._lodging: Lodging | None = None
        self._works: OrderedDict[bytes, _Work] = OrderedDict()
        self._lock = threading.Lock()
        do_without_torch()  # the site lives in a process of its own

    @collab.publish  # type: ignore[untyped-decorator]
    def answer(self, request: bytes) -> bytes:
        """The answer that belongs to a ticket, or nothing where it is not there yet; nothing, at once, where nothing is asked.

        Args:
            request: empty, or a map with a ticket, and the first time a frame and where to hand the reply on to.
        """
        own, caller, clients = collab.site_name, collab.caller, {client.name: client for client in collab.clients}
        if not request:
            return b""
        try:
            asked = _read(request)
            turn = min(TURN, asked["silence"] / 2)
            work = self._work(asked, own, caller)
            if work is None:
                work = self._works[asked["ticket"]]
                self._begin(work, asked, own, clients, turn)
        except PppmlError as error:
            return write_walk(Walk(own, Loss(str(error.message), handed=True)))
        return work.answer if work.done.wait(turn) else b""

    @collab.final  # type: ignore[untyped-decorator]
    def leave(self) -> None:
        """The job is over."""
        if self._lodging is not None:
            self._lodging.close()

    def _work(self, asked: Mapping[str, Any], own: str, caller: str) -> _Work | None:
        """The work of this ticket; None where it is to be begun now, as the newest."""
        with self._lock:
            if asked["ticket"] in self._works:
                return self._works[asked["ticket"]]
            if "frame" not in asked:
                raise WireError("this site holds nothing of that; its NVFlare client may have been started again", place=own)
            if caller != SERVER and decode_message(asked["frame"]).sender != caller:
                raise WireError(f"{caller} handed on what is not its own", place=own)
            self._works[asked["ticket"]] = _Work()
            while len(self._works) > KEPT:
                self._works.popitem(last=False)
        return None

    def _begin(self, work: _Work, asked: Mapping[str, Any], own: str, clients: Mapping[str, Any], turn: float) -> None:
        """Do it here if it is soon done, else in a thread of its own."""
        rest: Callable[[], Walk]
        try:
            lodging, frame = self._home(own), asked["frame"]
            if not asked["path"] and lodging.hand(frame, wait=False):
                if (reply := lodging.reply(turn)) is not None:
                    work.finish(Walk(own, reply))
                    return
                rest = lambda: Walk(own, lodging.reply() or b"")  # noqa: E731 - as the other
            else:
                others = Caller({n: c for n, c in clients.items() if n != own}, asked["timeout"], asked["silence"], sealed=True)
                rest = lambda: replied(  # noqa: E731
                    decode_message(frame), own, lodging.receive(frame), asked["path"], others, bridge=asked["bridge"]
                )
        except (Gone, PppmlError, OSError) as error:
            work.finish(Walk(own, _loss(error)))
            return
        threading.Thread(target=self._do, args=(work, own, rest), name="pppml-work", daemon=True).start()

    def _do(self, work: _Work, own: str, rest: Callable[[], Walk]) -> None:
        try:
            found = rest()
        except Exception as error:
            found = Walk(own, _loss(error))
        work.finish(found)

    def _home(self, own: str) -> Lodging:
        with self._lock:
            if self._lodging is None:
                self._lodging = Lodging(own_home(own))
            return self._lodging


def _loss(error: Exception) -> Loss:
    """Never the text of a fault: it may hold data, and this travels to the server."""
    told = error.message if isinstance(error, Gone | PppmlError) else f"its NVFlare client failed: {type(error).__name__}"
    return Loss(told, handed=True)


def _read(request: bytes) -> dict[str, Any]:
    asked = decode(request)
    if not isinstance(asked, dict) or not set(_FORM) <= set(asked) <= {*_FORM, "frame"} or type(asked.get("frame", b"")) is not bytes:
        raise WireError("this is no request", place="request")
    if any(type(asked[name]) is not form for name, form in _FORM.items()) or not all(type(site) is str for site in asked["path"]):
        raise WireError("this is no request", place="request")
    return asked

"""``environment: processes``: `pppml run` conducts, and an app of ours lends it the grid over a line on the loopback interface."""

from __future__ import annotations

import time
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack
from typing import Any

from pppml_core.engines.around import Around
from pppml_core.engines.parties import acquaint
from pppml_core.engines.sockets import Door, Line
from pppml_core.errors import RunFailed
from pppml_core.federation.files import write_atomic
from pppml_core.interfaces.engine import Job, Transport
from pppml_core.wire.codec import decode, encode
from pppml_core.wire.messages import SERVER
from pppml_flower.config import FlowerConfig
from pppml_flower.export import write_bridge
from pppml_flower.local_federation import local_federation
from pppml_flower.post import Answer

#: seconds for the app to start.
_START = 120.0


class BridgePost:
    """The post office at the other end of a line. Raises RunFailed where nobody is there any more, ConnectionError where the SuperLink is
    away.
    """

    def __init__(self, line: Line) -> None:
        self._line, self._number = line, 0

    def nodes(self) -> list[int]:
        """As :class:`.grid.GridPost`."""
        return [int(node) for node in self._ask(do="nodes")["nodes"]]

    def push(self, node: int, kind: str, data: bytes, ttl: float) -> str | None:
        """As :class:`.grid.GridPost`."""
        return self._ask(do="push", node=str(node), kind=kind, data=data, ttl=ttl)["id"] or None

    def pull(self, message_id: str, seconds: float) -> Answer | None:
        """As :class:`.grid.GridPost`."""
        answer = self._ask(do="pull", id=message_id, seconds=seconds)["answer"]
        return None if answer is None else (answer[0], answer[1])

    def _ask(self, **asked: Any) -> dict[str, Any]:
        self._number += 1
        try:
            self._line.send(self._number, b"", encode(asked))
            number, _, told = self._line.receive()
        except (OSError, EOFError) as error:
            text = "Flower's process at the other end of the line has ended"
            raise RunFailed(text, place="superlink", hint="pppml run --resume FOLDER") from error
        if number != self._number:
            raise RunFailed("an answer to another question came over the line", place="superlink")
        answer: dict[str, Any] = decode(told)
        if "error" in answer:
            raise ConnectionError(answer["error"])
        return answer


class OnThisMachine(Around):
    """A transport, and the federation it runs over, which ends with it."""

    def __init__(self, inner: Transport, stack: ExitStack) -> None:
        super().__init__(inner)
        self._stack = stack

    def close(self) -> None:
        """End all processes."""
        self._stack.close()


def on_this_machine(job: Job, config: FlowerConfig) -> Transport:
    """Start a federation of the job's sites, and a transport over it."""
    from pppml_flower.engine import joined

    if config.homes is None:
        acquaint(job.folder, (*job.sites, SERVER))
    with ExitStack() as stack:
        homes = {site: job.home(site).resolve() for site in job.sites}
        federation = stack.enter_context(local_federation(homes, python=config.python))
        door = Door()
        stack.callback(door.close)
        token, arrival = door.expect()
        write_atomic(federation.folder / "line", encode({"port": door.port, "token": token}))
        number = federation.submit(write_bridge(federation.folder / "bridge"), f"out={federation.folder / 'line'}")
        deadline, line = time.monotonic() + _START, None
        while line is None:
            try:
                line = arrival.result(timeout=1)
            except NotYet as error:
                if time.monotonic() > deadline or federation.status(number).startswith("finished"):
                    raise RunFailed("the ServerApp did not start", place="superlink", hint=federation.words("superlink")) from error
        stack.callback(line.close)
        transport = joined(job, BridgePost(line), config)
        return OnThisMachine(transport, stack.pop_all())

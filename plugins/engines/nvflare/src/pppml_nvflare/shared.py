"""Several runs in one simulator, for sweeps and tests: NVFlare takes longer to start than a small run to be done."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pppml_core.engines.parties import acquaint
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.messages import SERVER
from pppml_nvflare import conducting
from pppml_nvflare.config import NvflareConfig
from pppml_nvflare.federation import Simulator
from pppml_nvflare.transport import NvflareTransport


@contextmanager
def simulator(folder: Path, sites: Sequence[str], threads: int = 1, **settings: Any) -> Iterator[NvflareTransport]:
    """Runs with `engine: nvflare` in this thread share one simulator meanwhile, whatever their own settings of time and place.

    Args:
        folder: homes of the parties, ``folder/homes/<party>``, are made here where missing; ``nvflare.log`` too.
        sites: names of the sites, as in the tasks of the runs.
        threads: of each process.
        settings: of the engine.
    """
    config, homes = NvflareConfig(**settings), folder / "homes"
    acquaint(homes, (*sites, SERVER))
    parallel = min(config.parallel or len(sites), len(sites))
    arguments = {"timeout": config.timeout, "silence": config.silence, "parallel": parallel}

    def carry(job: Path) -> Simulator:
        return Simulator(job, sites, homes, folder / "nvflare.log", config.python or sys.executable, threads)

    transport = NvflareTransport("pppml-shared", sites, arguments, config.start, parallel, carry)
    try:
        transport.begin()
        with conducting.inside(_Lent(transport), homes):
            yield transport
    finally:
        transport.close()


class _Lent:
    """A transport that a run uses and does not close."""

    def __init__(self, transport: NvflareTransport) -> None:
        self.parallel, self._transport = transport.parallel, transport

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        return self._transport.deliver(frames)

    def walk(self, path: Sequence[str], frame: bytes, bridge: bool) -> Walk:
        return self._transport.walk(path, frame, bridge)

    def clock(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        """The simulator stays for the next run."""

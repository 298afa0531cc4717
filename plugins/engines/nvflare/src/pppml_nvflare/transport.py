"""The coordinator's transport: a job in NVFlare and the bridge to its server side; a job that ended is begun anew for the next attempt."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pppml_core.errors import PppmlError
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.codec import decode_message
from pppml_nvflare.bridge import Bridge
from pppml_nvflare.delivery import delivered
from pppml_nvflare.federation import Carrier
from pppml_nvflare.job import write_job

#: messages that belong to an attempt which a site must have opened itself: no other job carries them.
_WITHIN = ("session", "metrics", "train")


class NvflareTransport:
    """Carries frames through one NVFlare job after another.

    Args:
        name: of the jobs.
        sites: names of the clients.
        arguments: of the job's server side, without the bridge.
        start: seconds for a job to come up.
        parallel: sites asked at once.
        carry: starts what carries a job.
        stop: ends what was started for the jobs, when there are none any more.
    """

    def __init__(
        self,
        name: str,
        sites: Sequence[str],
        arguments: Mapping[str, float],
        start: float,
        parallel: int,
        carry: Callable[[Path], Carrier],
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.parallel = parallel
        self._name, self._sites, self._arguments, self._start, self._carry, self._stop = name, tuple(sites), arguments, start, carry, stop
        self._bridge: Bridge | None = None
        self._carrier: Carrier | None = None
        self._jobs = 0
        self._closed = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Bring a job up. Raises RunFailed with what NVFlare says."""
        self._end()
        bridge = self._bridge = Bridge()
        folder = Path(tempfile.mkdtemp(prefix="pppml-"))
        try:
            arguments = {**self._arguments, "bridge": str(bridge.path)}
            self._carrier = self._carry(write_job(folder / self._name, self._name, self._sites, arguments, self._start))
            bridge.await_job(self._start, self._carrier.sign)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._jobs += 1

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Several sites at once; replies as they come."""
        return delivered(frames, self._ask, self.parallel)

    def walk(self, path: Sequence[str], frame: bytes, bridge: bool) -> Walk:
        """A relay that the sites hand on."""
        standing = self._standing(frame)
        return Walk(path[0], standing) if isinstance(standing, Loss) else standing.walk(path, frame, bridge)

    def clock(self) -> Mapping[str, float]:
        """Sites do not tell."""
        return {}

    def remarks(self) -> list[str]:
        """Whether NVFlare ended a job on the way."""
        again = self._jobs - 1
        return (
            [f"NVFlare ended its job before the run was over; it was begun anew {again} time{'s' if again > 1 else ''}"]
            if again > 0
            else []
        )

    def close(self) -> None:
        """End the job and what was started for it. Safe to call twice."""
        self._closed = True
        try:
            self._end()
        finally:
            self._stop()

    def _ask(self, site: str, frame: bytes) -> bytes | Loss:
        standing = self._standing(frame)
        return standing if isinstance(standing, Loss) else standing.ask(site, frame)

    def _standing(self, frame: bytes) -> Bridge | Loss:
        """The bridge of a job that is there; where it ended, of one begun anew, if this frame begins an attempt."""
        with self._lock:
            if self._bridge is None or not self._bridge.stands:
                if self._closed or decode_message(frame).kind in _WITHIN:
                    return Loss("NVFlare's job had ended", handed=False)
                try:
                    self.begin()
                except PppmlError as error:
                    return Loss(f"NVFlare's job had ended and did not come up again: {error.message}", handed=False)
            assert self._bridge is not None
            return self._bridge

    def _end(self) -> None:
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None
        if self._carrier is not None:
            self._carrier.stop()
            self._carrier = None

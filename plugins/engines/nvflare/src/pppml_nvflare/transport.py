"""The coordinator's transport: a job in NVFlare and the bridge to its server side.

NVFlare hands a job to the clients that are there when it begins, and ends it for all when the process of one fails. So for the next attempt
a job that ended is begun anew, and one that goes on is too, where a client that was lost is connected again.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pppml_core.errors import PppmlError
from pppml_core.federation.letter import frame_in
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import WITHIN
from pppml_nvflare.bridge import Bridge
from pppml_nvflare.delivery import Delivery
from pppml_nvflare.federation import Carrier
from pppml_nvflare.job import write_job

#: seconds after which a client that is heard of is none whose last words were late.
_SETTLED = 2.0


class NvflareTransport:
    """Carries letters through one NVFlare job after another.

    Args:
        name: of the jobs.
        sites: names of the clients.
        arguments: of the job's server side, without the bridge.
        start: seconds for a job to come up.
        parallel: sites asked at once.
        carry: starts what carries a job.
        stop: ends what was started for the jobs, when there are none any more.
        place: of the bridge, see there.
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
        place: Path | None = None,
    ) -> None:
        self.parallel = parallel
        self._delivery = Delivery(lambda site, frame: self._ask(site, frame), parallel)
        self._name, self._sites, self._arguments, self._start, self._carry, self._stop = name, tuple(sites), arguments, start, carry, stop
        self._place = place
        self._bridge: Bridge | None = None
        self._carrier: Carrier | None = None
        self._jobs = 0
        #: sites that were lost in this job: since when; and those for which a job was begun anew and that have not answered since.
        self._lost: dict[str, float] = {}
        self._awaited: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Bring a job up. Raises RunFailed with what NVFlare says."""
        self._end()
        bridge = self._bridge = Bridge(self._place)
        folder = Path(tempfile.mkdtemp(prefix="pppml-"))
        try:
            arguments = {**self._arguments, "bridge": str(bridge.path)}
            self._carrier = self._carry(write_job(folder / self._name, self._name, self._sites, arguments, self._start))
            bridge.await_job(self._start, self._carrier.sign)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._jobs += 1
        self._lost = {}

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Several sites at once; replies as they come."""
        source = iter(frames)
        if (first := next(source, None)) is None:
            return iter(())
        if self._lost and decode_message(frame_in(first[1])).kind == "open":
            self._fetch_back()
        return self._delivery(itertools.chain([first], source))

    def walk(self, path: Sequence[str], frame: bytes, bridge: bool) -> Walk:
        """A relay that the sites hand on, along a path that is in the first one's letter."""
        standing = self._standing(frame)
        return Walk(path[0], standing) if isinstance(standing, Loss) else standing.walk(path, frame, bridge)

    def clock(self) -> Mapping[str, float]:
        """Sites do not tell."""
        return {}

    def remarks(self) -> list[str]:
        """Whether there was more than one job."""
        again = self._jobs - 1
        times = "once" if again == 1 else f"{again} times"
        return [f"NVFlare's job was begun anew {times}: it had ended, or a client that was lost had come back"] if again > 0 else []

    def close(self) -> None:
        """End the job and what was started for it. Safe to call twice."""
        self._closed = True
        self._delivery.close()
        try:
            self._end()
        finally:
            self._stop()

    def _ask(self, site: str, frame: bytes) -> bytes | Loss:
        standing = self._standing(frame)
        reply = standing if isinstance(standing, Loss) else standing.ask(site, frame)
        if isinstance(reply, Loss):
            self._lost.setdefault(site, time.time())
        else:
            self._lost.pop(site, None)
            self._awaited.discard(site)
        return reply

    def _fetch_back(self) -> None:
        """Begin a job anew where a lost site's client was heard of since, as one that was started again; once for each time it is lost."""
        heard = {} if self._carrier is None else self._carrier.heard()
        back = {site for site, since in self._lost.items() if heard.get(site, 0.0) > since + _SETTLED} - self._awaited
        if back:
            self._awaited |= back
            with self._lock, suppress(PppmlError):  # what keeps it from coming up is told to who asks next
                self.begin()

    def _standing(self, frame: bytes) -> Bridge | Loss:
        """The bridge of a job that is there; where it ended, of one begun anew, if this frame begins an attempt."""
        with self._lock:
            if self._bridge is None or not self._bridge.stands:
                if self._closed or decode_message(frame_in(frame)).kind in WITHIN:  # no other job carries them
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

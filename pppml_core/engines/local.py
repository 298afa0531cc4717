"""``local``: all sites on this machine, in this process or spread over worker processes. Bytes travel either way.

A worker is a fresh interpreter that is handed frames over a pipe (:mod:`.worker`); a site always lives in the same worker. Nothing is
pickled, so a job that needs live Python objects runs in this process only.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import IO, Any

from pppml_core.engines.config import LocalConfig
from pppml_core.engines.faults import FaultyTransport
from pppml_core.engines.worker import read_frame, write_frame
from pppml_core.errors import PppmlError, RunFailed, WireError
from pppml_core.federation.identity import provision
from pppml_core.federation.site import Site
from pppml_core.federation.site_host import SiteHost
from pppml_core.interfaces.engine import Engine, Job, Loss, Topology, Transport
from pppml_core.wire.codec import decode, decode_message, encode
from pppml_core.wire.messages import SERVER


class LocalEngine(Engine):
    """The engine of that name."""

    config: LocalConfig
    sites_here = True

    def __init__(self, config: LocalConfig) -> None:
        super().__init__(config)
        self.topology: Topology = config.topology

    def misfits(self, job_objects: Mapping[str, Any]) -> list[str]:
        """Live objects cannot travel to worker processes."""
        names = ", ".join(sorted(at_sites(job_objects)))
        if names and self.config.workers > 1:
            return [
                f"engine.workers: {self.config.workers} processes cannot share live Python objects ({names}); use workers: 1 or module:attr"
            ]
        return []

    def connect(self, job: Job) -> Transport:
        """Sites in this process (sharing the parts it has built), or in workers."""
        provision(job.folder, (*job.sites, SERVER))
        workers = min(self.config.workers, len(job.sites))
        inner: Transport = InProcess(job, self.config.amnesia) if workers == 1 else Workers(job, workers, self.config.amnesia)
        return FaultyTransport(inner, self.config.faults) if self.config.faults else inner


class InProcess:
    """Sites one after another in this process."""

    parallel = 1

    def __init__(self, job: Job, amnesia: bool) -> None:
        import torch

        self._job = job
        self._host = SiteHost(job)
        self._amnesia = amnesia
        self._sites: dict[str, Site] = {}
        self._frozen: dict[str, bytes] = {}
        # One thread a site is part of what makes results equal on every engine.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(self._host.assembly.config.training.threads)

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Each site handles its frame when it is asked for."""
        for count, (site, frame) in enumerate(frames, 1):
            if count % 16 == 0:
                give_back_memory()
            try:
                reply = self._receive(site, frame)
            except (PppmlError, OSError, MemoryError):
                raise
            except Exception as error:
                raise _broken(self._job, site, frame, error) from error
            yield site, reply

    def site(self, name: str) -> Site:
        """The living site of that name, brought to life at the first call. Raises ConfigError where its home is not in order."""
        if name not in self._sites:
            self._sites[name] = self._host.site(name)
        return self._sites[name]

    def _receive(self, name: str, frame: bytes) -> bytes:
        if not self._amnesia:
            return self.site(name).receive(frame)
        site = Site.thaw(name, self._host, self._frozen[name]) if name in self._frozen else self._host.site(name)
        reply = site.receive(frame)
        self._frozen[name] = site.freeze()
        self._host.models.clear()
        return reply

    def clock(self) -> Mapping[str, float]:
        """Seconds in ``train`` and ``evaluate``."""
        return dict(self._host.clock)

    def close(self) -> None:
        """Give back the thread setting."""
        import torch

        torch.set_num_threads(self._threads)


def at_sites(objects: Mapping[str, Any]) -> list[str]:
    """Names of the live objects that sites need; the others stay with who started the run."""
    return [name for name in objects if name.partition(".")[0] not in ("engine", "reporters", "attacks")]


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the allocator knows how (glibc). It keeps large freed blocks between small lasting ones,
    and a process of many sites would grow with their number.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _broken(job: Job, site: str, frame: bytes, error: Exception) -> RunFailed:
    """What a fault in the code of a task, model or method at a site becomes: where it was, and the way to go on."""
    where = f"site {site}"
    with suppress(WireError):
        message = decode_message(frame)
        where += f", round {message.round}, stage {message.stage}"
    return RunFailed(f"{type(error).__name__}: {error}", place=where, hint=resume_hint(job))


def resume_hint(job: Job) -> str:
    """What to do when a fault in a part's code ended a run."""
    return f"remove the cause (--debug shows where it is), then go on with --resume {job.folder.parent}"


class RemoteTraceback(Exception):
    """Carries the traceback of another process, as text, into this process's."""


def spread(sizes: Mapping[str, int], workers: int) -> dict[str, int]:
    """Site -> the worker it lives in: the largest first, each to the worker with the least to do."""
    load, home = [0] * workers, dict[str, int]()
    for site in sorted(sizes, key=lambda s: -sizes[s]):
        home[site] = load.index(min(load))
        load[home[site]] += max(1, sizes[site])
    return home


class Workers:
    """Sites spread over processes."""

    def __init__(self, job: Job, workers: int, amnesia: bool) -> None:
        self.parallel = workers
        self._job = job
        self._home = spread(job.sizes, workers)
        settings = {
            "run": job.run,
            "config": job.config,
            "folder": str(job.folder),
            "sites": list(job.sites),
            "sizes": dict(job.sizes),
            "amnesia": amnesia,
            "path": [p for p in sys.path if p],
        }
        threads = str(job.config["training"]["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "pppml_core.engines.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            for _ in range(workers)
        ]
        self._clocks: list[dict[str, float]] = [{} for _ in range(workers)]
        #: one thread a worker: it writes a frame into the pipe and waits for the reply.
        self._lines = [ThreadPoolExecutor(1) for _ in range(workers)]
        for process in self._processes:
            assert process.stdin is not None
            write_frame(process.stdin, encode(settings))

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Keep the workers busy, with at most two frames a worker in memory; yield replies as they come."""
        source = iter(frames)
        running: set[Future[tuple[str, bytes | Loss]]] = set()
        while True:
            while len(running) < 2 * self.parallel and (item := next(source, None)) is not None:
                home = self._home[item[0]]
                running.add(self._lines[home].submit(self._ask, home, *item))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()

    def _ask(self, index: int, site: str, frame: bytes) -> tuple[str, bytes | Loss]:
        process = self._processes[index]
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_frame(process.stdin, encode({"site": site}))
            write_frame(process.stdin, frame)
            about = decode(read_frame(process.stdout))
            self._clocks[index] = about["clock"]
            if about["error"]:
                place = about["place"] or f"worker {index + 1}, site {site}"
                hint = about["hint"] or resume_hint(self._job)
                raise RunFailed(about["error"], place=place, hint=hint) from RemoteTraceback("\n" + about["traceback"])
            return site, read_frame(process.stdout)
        except (OSError, EOFError) as error:
            code = process.poll()
            raise RunFailed(f"the worker process ended (exit code {code})", place=f"worker {index + 1}", hint="resume the run") from error

    def clock(self) -> Mapping[str, float]:
        """Seconds in ``train`` and ``evaluate``, summed over workers."""
        names = {name for clock in self._clocks for name in clock}
        return {name: sum(clock.get(name, 0.0) for clock in self._clocks) for name in names}

    def close(self) -> None:
        """End the workers: their input closes, and they stop."""
        for line in self._lines:
            line.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            _close(process.stdin)
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # Only now: a thread may have been reading from it until the process ended.
            _close(process.stdout)


def _close(pipe: IO[bytes] | None) -> None:
    """A pipe whose other end is gone is closed all the same."""
    if pipe is not None:
        with suppress(OSError):
            pipe.close()

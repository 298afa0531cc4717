"""``processes``: each site an operating-system process of its own, reached through a TCP socket on the loopback interface.

The coordinator listens; a site process is told where, and a token, on its standard input, and knocks (:mod:`.sockets`). It builds its
parts from the configuration, reads its own home (identity, roster, policy) and only its own images. All sites compute at the same time.
The topology is a star: every hop of a relay passes the coordinator, which cannot open what is sealed to the next site.

A process that is killed and a process that stalls are lost sites: the protocol decides what that means. With ``restart`` a process that
ended is started again when the next attempt opens; of the attempt in which it was lost it knows nothing, and its record on the disk
makes it refuse that attempt.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from pppml_core.engines.config import ProcessesConfig
from pppml_core.engines.faults import Fault, FaultyTransport, Strike, never_struck
from pppml_core.engines.local import RemoteTraceback, at_sites, resume_hint
from pppml_core.engines.sockets import Door, Line
from pppml_core.engines.worker import write_frame
from pppml_core.errors import ConfigError, PppmlError, RunFailed, WireError
from pppml_core.federation.identity import provision
from pppml_core.interfaces.engine import Engine, Job, Loss, Transport
from pppml_core.wire.codec import decode, decode_message, encode
from pppml_core.wire.messages import SERVER, WITHIN, Message

COMMAND = [sys.executable, "-m", "pppml_core.engines.site_process"]
#: seconds for a process to come up: its interpreter, its libraries, its parts.
START = 300.0
#: seconds for a process to end by itself once its line is closed.
END = 5.0


class ProcessesEngine(Engine):
    """The engine of that name."""

    topology = "star"
    config: ProcessesConfig

    def __init__(self, config: ProcessesConfig) -> None:
        super().__init__(config)
        self.homes: Path | None = Path(config.homes).resolve() if config.homes else None
        self.sites_here = self.homes is None  # a home may say where its site's own data are

    def misfits(self, job_objects: Mapping[str, Any]) -> list[str]:
        """Live objects cannot travel to processes; homes that are named must be there."""
        out = []
        if names := ", ".join(sorted(at_sites(job_objects))):
            out.append(f"engine: processes cannot share live Python objects ({names}); use `engine: local`, or write them as module:attr")
        if self.homes is not None and not self.homes.is_dir():
            out.append(f"engine.homes: there is no folder {self.homes}; make homes with `pppml site init`, or leave the setting out")
        return out

    def connect(self, job: Job) -> Transport:
        """Start all sites, and return when each is up. Raises what keeps one from coming up."""
        if self.homes is None:
            provision(job.folder, (*job.sites, SERVER))
        network = [fault for fault in self.config.faults if isinstance(fault, Fault)]
        inner = Processes(job, self.config)
        return FaultyTransport(inner, network) if network else inner


class Processes:
    """A transport to site processes."""

    def __init__(self, job: Job, config: ProcessesConfig) -> None:
        self.parallel = min(config.parallel or _processors(), len(job.sites))
        self._door = Door()
        self._pool = ThreadPoolExecutor(self.parallel, "pppml-site")
        strikes = [fault for fault in config.faults if isinstance(fault, Strike)]
        self._sites = {s: _SiteProcess(s, job, config, self._door, [f for f in strikes if f.site == s]) for s in job.sites}
        self._strays = [fault for fault in strikes if fault.site not in self._sites]
        try:
            for site in self._sites.values():
                site.start()
            for site in self._sites.values():
                site.await_ready()
        except BaseException:
            self.close()
            raise

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """As many sites busy at once as allowed, one frame a site in memory; replies as they come."""
        source = iter(frames)
        running: set[Future[tuple[str, bytes | Loss]]] = set()
        while True:
            while len(running) < self.parallel and (item := next(source, None)) is not None:
                running.add(self._pool.submit(self._sites[item[0]].ask, item[1]))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()

    def clock(self) -> Mapping[str, float]:
        """Seconds in ``train`` and ``evaluate``, summed over sites."""
        clocks = [site.clock for site in self._sites.values()]
        return {name: sum(clock.get(name, 0.0) for clock in clocks) for name in {n for clock in clocks for n in clock}}

    def remarks(self) -> list[str]:
        """Strikes that never happened."""
        return never_struck([*self._strays, *(strike for site in self._sites.values() for strike in site.unused)])

    def close(self) -> None:
        """Hang up on every site; one that does not end by itself is killed."""
        self._door.close()
        for site in self._sites.values():
            site.hang_up()
        for site in self._sites.values():
            site.bury()
        self._pool.shutdown(cancel_futures=True)


class _SiteProcess:
    """A site's process, as the coordinator sees it."""

    def __init__(self, name: str, job: Job, config: ProcessesConfig, door: Door, strikes: list[Strike]) -> None:
        self.name, self.clock = name, dict[str, float]()
        #: what processes of this site that have ended had spent.
        self._past: Mapping[str, float] = {}
        self._job, self._config, self._door, self._strikes = job, config, door, strikes
        self._left = [strike.times for strike in strikes]
        self._process: subprocess.Popen[bytes] | None = None
        self._token, self._arrival = b"", Future[Line]()
        self._line: Line | None = None
        self._number = 0
        self._closing = False
        #: held while a process is started or ended: the run may end while a pool thread starts one anew.
        self._lock = threading.Lock()

    @property
    def unused(self) -> list[Strike]:
        """Strikes that have never happened."""
        return [strike for strike, left in zip(self._strikes, self._left, strict=True) if left == strike.times]

    # -- life ----------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process; it knocks when it is awake."""
        threads = str(self._job.config["training"]["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with self._lock:
            if self._closing:
                raise RunFailed("the run is ending", place=f"site {self.name}")
            self._line, self._past = None, self.clock
            self._token, self._arrival = self._door.expect()
            self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        with suppress(OSError), self._process.stdin as pipe:  # one that has ended already is noticed by who waits for it
            write_frame(pipe, encode(self._settings()))

    def _settings(self) -> dict[str, Any]:
        job = self._job
        about = {
            "run": job.run,
            "config": job.config,
            "folder": str(job.folder.resolve()),
            "sites": list(job.sites),
            "sizes": dict(job.sizes),
        }
        homes = "" if self._config.homes is None else str(Path(self._config.homes).resolve())
        own = {"site": self.name, "homes": homes, "path": [p for p in sys.path if p], "port": self._door.port, "token": self._token}
        return {**about, **own}

    def await_ready(self) -> None:
        """Return when the site is up. Raises what it says keeps it from coming up, RunFailed where it says nothing."""
        deadline = time.monotonic() + START
        try:
            while self._line is None:
                wait([self._arrival], timeout=0.1)
                if self._arrival.done():
                    self._line = self._arrival.result()
                elif self._ended() or time.monotonic() > deadline:
                    raise EOFError
            told = _told(self._line.receive(deadline)[1])
        except (OSError, EOFError, WireError, CancelledError) as error:
            code = self._kill()
            raise RunFailed(
                f"its process did not come up (exit code {code})", place=f"site {self.name}", hint=resume_hint(self._job)
            ) from error
        self._heed(told, ConfigError)

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _kill(self) -> int | None:
        """End the process, however it is; its exit code."""
        code = None
        if self._process is not None:
            self._process.kill()
            code = self._process.wait()
        self._disconnect()
        return code

    def _disconnect(self) -> None:
        self._door.forget(self._token)
        if self._arrival.done() and not self._arrival.cancelled():
            self._arrival.result().close()

    def hang_up(self) -> None:
        """Close the line: the process ends by itself."""
        with self._lock:
            self._closing = True
        self._disconnect()

    def bury(self) -> None:
        """Return when the process has ended."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END)
            self._kill()

    # -- one request ---------------------------------------------------------------------------------------------------------------

    def ask(self, frame: bytes) -> tuple[str, bytes | Loss]:
        """The site's reply to a frame, or why there is none. Raises RunFailed for a fault in the code of its parts, as any engine does."""
        if self._ended() and (loss := self._restart(frame)) is not None:
            return self.name, loss
        return self.name, self._asked(frame, self._next_strike(frame))

    def _restart(self, frame: bytes) -> Loss | None:
        code = self._process.returncode if self._process is not None else None
        gone = f"its process ended (exit code {code})"
        if not self._config.restart or decode_message(frame).kind in WITHIN:
            return Loss(gone, handed=False)
        try:
            self._kill()
            self.start()
            self.await_ready()
        except PppmlError as error:
            return Loss(f"{gone} and did not come up again: {error.message}", handed=False)
        return None

    def _asked(self, frame: bytes, strike: str) -> bytes | Loss:
        assert self._process is not None
        assert self._line is not None
        deadline = time.monotonic() + self._config.timeout
        self._number += 1
        if strike == "kill-before":
            return Loss(f"its process ended (exit code {self._kill()})", handed=False)
        if strike == "stall":
            self._process.send_signal(signal.SIGSTOP)
        try:
            self._line.send(self._number, b"", frame, deadline)
        except OSError as error:
            # Not all of it left here, so the site never has the whole of it, and nothing can follow on this line.
            return Loss(f"the request could not be handed over: {error.strerror or error} (exit code {self._kill()})", handed=False)
        try:
            if strike == "kill":
                raise EOFError
            number = -1
            while number != self._number:  # a late answer to an earlier request is nobody's any more
                number, about, reply = self._line.receive(deadline)
            told = _told(about)
        except TimeoutError:
            return Loss(f"no answer within {self._config.timeout:g} seconds", handed=True)
        except WireError as error:
            self._kill()
            return Loss(f"its answer could not be read: {error.message}", handed=True)
        except (OSError, EOFError):
            return Loss(f"its process ended (exit code {self._kill()})", handed=True)
        finally:
            if strike == "stall":
                self._process.send_signal(signal.SIGCONT)
        if strike == "kill-after":
            self._kill()
        self._heed(told, RunFailed)
        return reply

    def _next_strike(self, frame: bytes) -> str:
        if not any(self._left):
            return ""
        message: Message = decode_message(frame)
        for index, strike in enumerate(self._strikes):
            if self._left[index] and strike.strikes(self.name, message):
                self._left[index] -= 1
                return strike.do
        return ""

    def _heed(self, told: Mapping[str, Any], refusal: type[PppmlError]) -> None:
        """Take in what an answer says besides its reply; raise what went wrong there."""
        self.clock = {name: self._past.get(name, 0.0) + seconds for name, seconds in told["clock"].items()} or self.clock
        if told["error"]:
            kind = refusal if told["code"] == ConfigError.exit_code else RunFailed
            remote = RemoteTraceback("\n" + told["traceback"])
            raise kind(told["error"], place=told["place"] or f"site {self.name}", hint=told["hint"] or resume_hint(self._job)) from remote


#: what an answer says besides its reply.
_ABOUT = {"clock": dict, "error": str, "place": str, "hint": str, "code": int, "traceback": str}


def _told(about: bytes) -> dict[str, Any]:
    """That map. Raises WireError for anything else."""
    told = decode(about)
    if not isinstance(told, dict) or set(told) != set(_ABOUT) or any(type(told[name]) is not form for name, form in _ABOUT.items()):
        raise WireError("this is no answer of a site process", place="answer")
    if any(type(seconds) is not float for seconds in told["clock"].values()):
        raise WireError("a clock must hold seconds", place="answer")
    return told


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

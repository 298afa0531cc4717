"""What carries a job, in processes beside this one: NVFlare's simulator, or a federation that an administrator's kit reaches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pppml_core.engines.parties import HOMES
from pppml_core.errors import RunFailed
from pppml_nvflare.job import CLASSES
from pppml_nvflare.kits import environment
from pppml_nvflare.processes import end_tree

_SIMULATOR = "nvflare.private.fed.app.simulator.simulator"
#: seconds a simulator has to end by itself once its job is over.
_END = 20.0


class Carrier(Protocol):
    """What runs one job."""

    def sign(self) -> str:
        """What is wrong, in words; empty while nothing is."""

    def heard(self) -> Mapping[str, float]:
        """When NVFlare's server last heard of each client, in seconds since the epoch; empty where there is no telling."""

    def stop(self) -> None:
        """End the job and whatever was started for it. Safe to call twice."""


class Simulator:
    """NVFlare's simulator with one job.

    Args:
        job: its folder.
        sites: names of the clients; each is a process.
        homes: of the parties.
        log: what it prints goes here.
        python: its interpreter.
        threads: of each process.
        classes: that its parties allow.
    """

    def __init__(
        self, job: Path, sites: Sequence[str], homes: Path, log: Path, python: str, threads: int, classes: Sequence[str] = CLASSES
    ) -> None:
        self._folder, self._log = Path(tempfile.mkdtemp(prefix="pppml-nvflare-")), log
        if len(str(self._folder).split()) > 1:
            raise RunFailed("NVFlare's simulator takes no folder with a space in its name", place=str(self._folder), hint="set TMPDIR")
        local = self._folder / "workspace" / "local"
        local.mkdir(parents=True)
        (local / "resources.json").write_text(json.dumps({"format_version": 2, "class_allow_list": list(classes)}))
        given = shutil.copytree(job, self._folder / "job")
        command = [python, "-m", _SIMULATOR, str(given), "-w", str(self._folder / "workspace"), "-m", str(len(sites))]
        with open(log, "ab") as out:
            self._process = subprocess.Popen(
                [*command, "-c", ",".join(sites), "-n", str(len(sites)), "-t", str(len(sites))],
                cwd=self._folder,
                env=environment(**{HOMES: str(homes.resolve()), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def sign(self) -> str:
        """Whether it ended, and its last words."""
        code = self._process.poll()
        return "" if code is None else f"NVFlare's simulator ended (exit code {code}): {last_words(self._log)}"

    def heard(self) -> Mapping[str, float]:
        """Its clients are not started again."""
        return {}

    def stop(self) -> None:
        """Let it end, or end it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        end_tree(self._process.pid, patience=0)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class Submitted:
    """A job submitted with an administrator's kit; a small process beside this one stays with it (:mod:`.submit`).

    Args:
        kit: the startup kit.
        job: its folder.
        sites: names of the clients to wait for.
        seconds: to reach the server, and for the clients to connect.
        log: what goes wrong with it goes here.
        python: interpreter with NVFlare.
    """

    def __init__(self, kit: Path, job: Path, sites: Sequence[str], seconds: float, log: Path, python: str) -> None:
        self._wrong, self._heard = "", dict[str, float]()
        command = [python, "-m", "pppml_nvflare.submit", str(kit.resolve()), str(job), ",".join(sites), str(seconds)]
        with open(log, "ab") as out:
            self._process = subprocess.Popen(
                command, cwd=job, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, start_new_session=True
            )
        self._listener = threading.Thread(target=self._listen, name="pppml-submit", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told: dict[str, Any] = {}
            with suppress(ValueError):
                told = json.loads(line)
            if "error" in told:
                self._wrong = f"NVFlare did not take the job: {told['error']}"
            elif str(told.get("status", "")).startswith("FINISHED"):
                self._wrong = f"NVFlare ended the job: {told['status']}"
            elif "heard" in told:
                self._heard = dict(told["heard"])

    def heard(self) -> Mapping[str, float]:
        """As NVFlare's server told some seconds ago."""
        return self._heard

    def sign(self) -> str:
        """Whether the job was not taken or has ended."""
        if not self._wrong and self._process.poll() not in (None, 0):
            self._listener.join(5)
            return self._wrong or f"its submission ended (exit code {self._process.poll()})"
        return self._wrong

    def stop(self) -> None:
        """Return when the job is over; one that does not end by itself is aborted."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()


def last_words(log: Path) -> str:
    """The last errors in a log, or its last line."""
    with suppress(OSError):
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "Error:" in line or "error:" in line]
        return " | ".join((errors or lines)[-2:])[:600]
    return "it left no log"

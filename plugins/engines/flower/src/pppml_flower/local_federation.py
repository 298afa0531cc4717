"""A whole Flower federation on this machine: a SuperLink and a node a site, as separate processes on the loopback interface.

::

    with local_federation({"a": homes / "a", "b": homes / "b"}) as federation:
        federation.run(app, "out=/runs/x", timeout=600)      # an app of `pppml export flower`

TLS and authenticated nodes as between real sites, with certificates and keys made for the occasion. Everything Flower writes is in one
folder, which is removed at the end, as all processes are.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

from pppml_core.errors import RunFailed
from pppml_core.federation.files import write_atomic
from pppml_flower.certificates import node_key, server_certificates
from pppml_flower.config import FlowerConfig
from pppml_flower.gate import PATIENCE, STARTER
from pppml_flower.site import end, flower_environment, free_port, node_command, scratch, superlink_command

#: name of the connection in Flower's own configuration.
_CONNECTION = "pppml"
#: seconds for the SuperLink to answer.
_START = 120.0


@contextmanager
def local_federation(
    homes: Mapping[str, Path], folder: Path | None = None, *, patience: float = 0.5, python: str | None = None
) -> Iterator[LocalFederation]:
    """Start everything, and end it at the end.

    Args:
        homes: site -> its home, made with `pppml site init`.
        folder: where Flower's files and the logs go; it is kept. Default: a temporary folder.
        patience: seconds between two questions of a node for work.
        python: the interpreter that has Flower; default: this one.
    """
    with ExitStack() as stack:
        place = stack.enter_context(scratch()) if folder is None else folder.resolve()
        place.mkdir(parents=True, exist_ok=True)
        federation = LocalFederation(homes, place, patience, python or sys.executable)
        stack.callback(federation.stop)
        federation.start()
        yield federation


class LocalFederation:
    """Processes of one federation. ``superlink`` and ``nodes`` are there to be killed by those who want to see what happens then."""

    def __init__(self, homes: Mapping[str, Path], folder: Path, patience: float, python: str) -> None:
        self.folder, self._homes, self._patience, self._python = folder, dict(homes), patience, python
        self.port = free_port()
        self.superlink: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = flower_environment(folder, python)

    # -- life ----------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Certificates, keys, SuperLink, and the nodes."""
        server_certificates(self.folder)
        connection = f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{self.port}"\n'
        write_atomic(self.folder / "flwr" / "config.toml", (connection + f'root-certificates = "{self.folder / "ca.pem"}"\n').encode())
        self.start_superlink()
        for site in self._homes:
            self.start_node(site)

    def start_superlink(self) -> None:
        """Start the SuperLink, on its port, and return when it answers."""
        authority, certificate, key = (str(self.folder / name) for name in ("ca.pem", "server.pem", "server.key"))
        own = self._settings(root_certificates=authority, certificate=certificate, certificate_key=key)
        self.superlink = self._begin(superlink_command(self.folder, own), "superlink")
        deadline = time.monotonic() + _START
        while not self._answers():
            if self.superlink.poll() is not None or time.monotonic() > deadline:
                raise RunFailed("the SuperLink did not start", place="superlink", hint=self.words("superlink"))
            time.sleep(0.1)

    def start_node(self, site: str) -> None:
        """Start the node of a site."""
        command = [sys.executable, "-m", "pppml_flower.site", str(self._homes[site]), self._node(site).model_dump_json()]
        self.nodes[site] = self._begin(command, site)

    def start_bare_node(self, name: str) -> None:
        """Start a node that runs what is sent, as Flower's own does, and asks for work as often as ours: to measure what Flower takes."""
        python, safe, _, _, *settings = node_command(self.folder, self._node(name))
        command = [python, safe, "-c", "from pppml_flower.gate import bare_node; bare_node()", *settings]
        self.nodes[name] = self._begin(command, name, {PATIENCE: str(self._patience)})

    def _node(self, name: str) -> FlowerConfig:
        key = self.folder / f"{name}.key"
        if not key.exists():
            node_key(key)
            self._flwr("supernode", "register", f"{key}.pub", _CONNECTION)
        return self._settings(auth_key=str(key), root_certificates=str(self.folder / "ca.pem"))

    def _settings(self, **files: str) -> FlowerConfig:
        return FlowerConfig.model_validate(
            {"superlink": f"127.0.0.1:{self.port}", "patience": self._patience, "python": self._python, **files}
        )

    def stop_nodes(self) -> None:
        """End the nodes of all sites."""
        for process in self.nodes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.nodes.values():
            end(process)

    def stop(self) -> None:
        """End all processes."""
        self.stop_nodes()
        if self.superlink is not None:
            end(self.superlink)

    # -- runs ----------------------------------------------------------------------------------------------------------------------

    def submit(self, app: Path, *settings: str) -> int:
        """Start a run of an exported app; ``settings`` as in ``out=/runs/a``. Its number at the SuperLink."""
        given = " ".join(f'{name}="{value}"' for name, _, value in (setting.partition("=") for setting in settings))
        told = self._flwr("run", str(app), _CONNECTION, "--format", "json", *(["--run-config", given] if given else []))
        if "run-id" not in (answer := json.loads(told)):
            raise RunFailed("Flower did not take the app", place=str(app), hint=told[-2000:])
        return int(answer["run-id"])

    def status(self, run: int) -> str:
        """What the SuperLink says of a run, such as ``running`` or ``finished:completed``."""
        told = json.loads(self._flwr("ls", _CONNECTION, "--run-id", str(run), "--format", "json"))
        return str(told["runs"][0]["status"])

    def run(self, app: Path, *settings: str, timeout: float = 3600.0) -> str:
        """Start a run and return its last status. Raises RunFailed where it takes longer."""
        number, deadline = self.submit(app, *settings), time.monotonic() + timeout
        while not (status := self.status(number)).startswith("finished"):
            if time.monotonic() > deadline:
                raise RunFailed(f"run {number} is {status} after {timeout:g} seconds", place="superlink", hint=self.words("superlink"))
            time.sleep(1)
        return status

    def words(self, process: str) -> str:
        """The last lines of a process's log; ``superlink`` or a site."""
        path = self.folder / f"{process}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def _begin(self, command: list[str], log: str, more: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[bytes]:
        environment = {**self._environment, STARTER: str(os.getpid()), **more}
        with open(self.folder / f"{log}.log", "ab") as file:
            return subprocess.Popen(
                command, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _flwr(self, *words: str) -> str:
        """What a command of Flower prints on its standard output. Raises RunFailed with its words where it fails."""
        command = [str(Path(self._python).parent / "flwr"), *words]
        done = subprocess.run(command, env=self._environment, cwd=self.folder, capture_output=True, text=True, timeout=_START, check=False)
        if done.returncode:
            raise RunFailed(f"`flwr {words[0]}` failed", place="superlink", hint=(done.stdout + done.stderr)[-2000:])
        return done.stdout

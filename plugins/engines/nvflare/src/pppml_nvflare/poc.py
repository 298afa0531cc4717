"""A whole federation on this machine, as it would be in production: provisioned, mutual TLS, a process for the server and each client.

From a shell: ``python -m pppml_nvflare.poc start DIR --sites a,b,c``, ``... stop DIR``. NVFlare's own `nvflare poc` does much the same;
here ports are free ones, so that several federations stand side by side, and everything lies in one folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pppml_core.engines.parties import HOMES, acquaint
from pppml_core.errors import PppmlError, RunFailed
from pppml_nvflare.kits import admit, command, environment
from pppml_nvflare.processes import end_tree

_PROJECT, _ADMIN, _SERVER = "pppml", "admin@pppml.org", "localhost"
_PROCESSES = "processes.json"


class Poc:
    """A federation in a folder.

    Args:
        folder: a new folder, or one in which :meth:`prepare` has been called.
        sites: names of the clients.
        homes: of the parties, ``homes/<party>``.
        python: interpreter of its processes.
        tls: False: connections in the clear, to show what travels on them.
    """

    def __init__(self, folder: Path, sites: Sequence[str], homes: Path, *, python: str = sys.executable, tls: bool = True) -> None:
        self.folder, self.sites, self.homes, self.python, self.tls = folder.resolve(), tuple(sites), homes.resolve(), python, tls

    @property
    def kit(self) -> Path:
        """The administrator's startup kit."""
        return self.kit_of(_ADMIN)

    def kit_of(self, party: str) -> Path:
        """The startup kit of a site, or of ``server``."""
        return self.folder / "kits" / _PROJECT / "prod_00" / (_SERVER if party == "server" else party)

    def prepare(self) -> None:
        """Make the startup kits, certificates included. Nothing is started."""
        self.folder.mkdir(parents=True, exist_ok=True)
        port, security = _free_port(), "mtls" if self.tls else "clear"
        people: list[dict[str, Any]] = [
            {"name": _SERVER, "type": "server", "fed_learn_port": port, "admin_port": port},
            *({"name": site, "type": "client"} for site in self.sites),
            {"name": _ADMIN, "type": "admin", "role": "project_admin"},
        ]
        builders = [
            {"path": "nvflare.lighter.impl.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
            {"path": "nvflare.lighter.impl.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
            {"path": "nvflare.lighter.impl.cert.CertBuilder", "args": {}},
            {"path": "nvflare.lighter.impl.signature.SignatureBuilder", "args": {}},
        ]
        people = [{**one, "org": "pppml", "connection_security": security} for one in people]
        project = {"api_version": 3, "name": _PROJECT, "description": "pppml on one machine", "participants": people, "builders": builders}
        (self.folder / "project.yml").write_text(json.dumps(project, indent=2))  # which is YAML too
        made = [self.python, "-m", "nvflare.cli", "provision", "-p", str(self.folder / "project.yml"), "-w", str(self.folder / "kits")]
        done = subprocess.run(made, capture_output=True, text=True, env=environment(), stdin=subprocess.DEVNULL, check=False)
        if not self.kit.is_dir():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise RunFailed(f"NVFlare could not provision a federation: {' '.join(said)}", place=str(self.folder))
        for party in ("server", *self.sites):
            admit(self.kit_of(party), storage=self.folder / "storage")

    def start(self) -> None:
        """Start server and clients; they connect by themselves."""
        for party in ("server", *self.sites):
            self.start_one(party)

    def start_one(self, party: str) -> int:
        """Start the process of a site, or of ``server``; its id. One that was killed may be started again."""
        log = open(self.folder / f"{party}.log", "ab")  # noqa: SIM115 - the process keeps it
        with log:
            process = subprocess.Popen(
                command(self.kit_of(party), self.python),
                cwd=self.folder,
                env=environment(**{HOMES: str(self.homes)}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._note({**self.processes(), party: process.pid})
        return process.pid

    def processes(self) -> dict[str, int]:
        """Party -> id of the process that was started for it last."""
        try:
            return dict(json.loads((self.folder / _PROCESSES).read_text()))
        except FileNotFoundError:
            return {}

    def kill(self, party: str) -> None:
        """Kill a party's process and all that it started (SIGKILL), as a power cut would."""
        end_tree(self.processes()[party], patience=0)

    def stop(self) -> None:
        """End everything. Safe to call twice, and in another process than the one that started it."""
        held = self.processes()
        for party in sorted(held, key="server".__eq__):
            end_tree(held[party], patience=3)
        self._note({})

    def __enter__(self) -> Poc:
        self.prepare()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _note(self, processes: dict[str, int]) -> None:
        if processes or self.folder.is_dir():
            (self.folder / _PROCESSES).write_text(json.dumps(processes))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class HeldPoc:
    """A federation for this process alone: another one starts it and, when this one lets go of it or is killed, stops it and removes it.

    Args:
        sites, homes, python: as of :class:`Poc`.
        log: what goes wrong goes here.
    """

    def __init__(self, sites: Sequence[str], homes: Path, python: str, log: Path) -> None:
        folder = Path(tempfile.mkdtemp(prefix="pppml-poc-"))
        self.kit = Poc(folder, sites, homes).kit
        command = [python, "-m", "pppml_nvflare.poc", "hold", str(folder), "--sites", ",".join(sites), "--homes", str(homes.resolve())]
        with open(log, "ab") as out:
            self._process = subprocess.Popen(
                command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, start_new_session=True
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.stop()
            raise RunFailed("NVFlare's processes could not be started", place=str(log))

    def stop(self) -> None:
        """Return when all is gone. Safe to call twice."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process.wait()


def main() -> int:
    """``start DIR --sites a,b,c [--homes DIR] [--no-tls]``, ``stop DIR``; ``hold`` starts, and stops when its input ends."""
    parser = argparse.ArgumentParser(prog="python -m pppml_nvflare.poc", description="An NVFlare federation on this machine.")
    parser.add_argument("do", choices=("start", "stop", "hold"), help="hold: start, stop when the input ends, and remove DIR")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--sites", default="", help="names of the clients, joined by commas")
    parser.add_argument("--homes", type=Path, help="homes of all parties, made where missing; default: DIR/homes")
    parser.add_argument("--no-tls", action="store_true", help="connections in the clear, to show what travels on them")
    given = parser.parse_args()
    if given.do == "stop":
        Poc(given.folder, (), given.folder).stop()
        return 0
    if not given.sites:
        parser.error(f"{given.do} needs --sites")
    poc = Poc(given.folder, given.sites.split(","), given.homes or given.folder / "homes", tls=not given.no_tls)
    try:
        acquaint(poc.homes, ("server", *poc.sites))
        poc.prepare()
        poc.start()
        print(f"engine: {{use: nvflare, environment: poc, kit: {poc.kit}, homes: {poc.homes}}}", flush=True)
        if given.do == "hold":
            sys.stdin.read()
    except (PppmlError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        given.do = "hold"
        return 1
    finally:
        if given.do == "hold":
            poc.stop()
            shutil.rmtree(poc.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

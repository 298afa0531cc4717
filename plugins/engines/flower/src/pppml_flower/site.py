"""The node of a site: a keeper of its home, and Flower's SuperNode, which hands every message to it.

A SuperNode as Flower ships it runs whatever code the SuperLink sends as an app. This one runs the handler that is installed here, whatever
is sent (:mod:`.gate`), so that a site's policy on code means something.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pppml_core.errors import ConfigError, RunFailed
from pppml_core.federation.home import open_home
from pppml_flower.config import FlowerConfig
from pppml_flower.gate import PATIENCE, refusals
from pppml_flower.keeper import kept

#: seconds for a SuperNode to end by itself.
END = 10.0


def serve(home: Path, config: FlowerConfig) -> None:
    """Keep the home and run its node until interrupted or the node ends. Raises RunFailed where it ends by itself."""
    home = home.resolve()
    name = open_home(home).name
    command = node_command(home, config)
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, _interrupt)
    with kept(home), scratch() as folder:
        refusals(folder / "bin")
        process = subprocess.Popen(command, env=node_environment(folder, config))
        try:
            code = process.wait()
        except KeyboardInterrupt:
            return
        finally:
            end(process)
    raise RunFailed(f"its SuperNode ended (exit code {code})", place=f"site {name}", hint="its last words are above")


def node_command(home: Path, config: FlowerConfig) -> list[str]:
    """How the SuperNode of a home is started. Raises ConfigError where its settings are not those of a safe node, and nobody asked for less."""
    if config.superlink is None:
        raise ConfigError("which SuperLink?", place="engine.superlink", hint="HOST:PORT, from whoever runs it")
    command = [sys.executable, "-m", "pppml_flower.gate", "--superlink", config.superlink, "--port", str(free_port())]
    if config.insecure:
        if config.auth_key or config.root_certificates:
            hint = "take `insecure` away, or the key and the certificates"
            raise ConfigError("an insecure node uses neither key nor certificates", place="engine.insecure", hint=hint)
        command.append("--insecure")
    elif config.auth_key is None:
        hint = "ssh-keygen -t ecdsa -b 384, and have the public key registered: flwr supernode register; or insecure: true, for tests"
        raise ConfigError("by which key does the SuperLink know this node?", place="engine.auth_key", hint=hint)
    else:
        command += ["--auth-supernode-private-key", str(_file(home, config.auth_key, "engine.auth_key"))]
        if config.root_certificates is not None:
            command += ["--root-certificates", str(_file(home, config.root_certificates, "engine.root_certificates"))]
    return [*command, "--node-config", f'home="{home}"']


def _file(home: Path, given: str, place: str) -> Path:
    """A file named in a home; a relative name is one in the home."""
    path = home / Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", place=place)
    return path


def flower_environment(folder: Path) -> dict[str, str]:
    """The environment of Flower's processes on this machine: their files under ``folder``, no telemetry, no look for updates, no installing."""
    own = {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
    }
    # Flower finds its own commands by name; those of this interpreter come first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **own, "PATH": path}


def node_environment(folder: Path, config: FlowerConfig) -> Mapping[str, str]:
    """As above, with this package's commands before Flower's."""
    environment = flower_environment(folder)
    return {**environment, "PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}", PATIENCE: str(config.patience)}


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for Flower's files, which ends with this process's need of it."""
    folder = Path(tempfile.mkdtemp(prefix="pppml-flower-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, by force where it does not hear."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # For a federation on one machine; people call `pppml site run`, which reads the same settings from site.yaml.
    serve(Path(sys.argv[1]), FlowerConfig.model_validate_json(sys.argv[2]))

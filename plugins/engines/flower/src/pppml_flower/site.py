"""Flower's process of a party: at a site a keeper of its home, and a SuperNode that hands it every message; for ``server`` a SuperLink.

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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from pppml_core.engines.parties import HOME
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.federation.home import open_home
from pppml_core.wire.messages import SERVER
from pppml_flower.config import FlowerConfig
from pppml_flower.gate import LOST, PATIENCE, STARTER, end_with_starter
from pppml_flower.keeper import kept

#: seconds for a process of Flower to end by itself.
END = 10.0
#: seconds before a node is started again: the first time, and at most.
SOON, LATE = 2.0, 60.0
#: seconds in which a node may fail to connect: for a minute a SuperLink takes one for connected that ended without a word, and lets no
#: other in under its key.
HELD = 75.0
#: characters of a folder in which a fork server may have its socket.
_SHORT = 70
#: how a module is run of which no part is found in the folder where the site was started.
_MODULE = ("-P", "-m")


def serve(home: Path, config: FlowerConfig) -> int:
    """Be this party's process of Flower until interrupted; then 0. Raises RunFailed where it ends by itself.

    A node that Flower has given up, or that was killed, is started again; whoever lives in the home lives on.
    """
    home = home.resolve()
    name = open_home(home).name
    command = partial(superlink_command if name == SERVER else node_command, home, config)
    command()  # what is wrong with the settings is told before anything is started
    for stop in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(stop) is not signal.SIG_IGN:  # as under nohup
            signal.signal(stop, _interrupt)
    with nullcontext() if name == SERVER else kept(home), scratch() as folder:
        environment = flower_environment(folder, python_of(config))
        environment |= {PATIENCE: str(config.patience), HOME: str(home), STARTER: str(os.getpid())}
        if len(str(folder)) <= _SHORT:
            environment["TMPDIR"] = str(folder)  # Flower's processes leave folders behind where they are killed

        def run() -> int:
            # In a session of its own, it is told to stop once, by this process: so it takes its leave of the SuperLink.
            process = subprocess.Popen(command(), env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                return process.wait()
            finally:
                end(process)

        try:
            code = run() if name == SERVER else _attend(run, name)
        except KeyboardInterrupt:
            return 0
    raise RunFailed(f"Flower's process ended (exit code {code})", place=name, hint="its last words are above")


def _attend(run: Callable[[], int], name: str) -> int:
    """The exit code with which a node ends for good: one that fails for :data:`HELD` seconds, and was never connected, as far as is known.

    One that was may have lost its network, its clock (0: the SuperLink did not know its signature) or its memory; all of that may pass.
    """
    begun, connected, pause = time.monotonic(), False, SOON
    while True:
        began = time.monotonic()
        code = run()
        connected = connected or code == LOST or code <= 0
        if not connected and time.monotonic() - begun > HELD:
            return code
        if time.monotonic() - began > LATE:
            pause = SOON
        if code == 0:
            pause = LATE
        print(f"{name}: the node has ended (exit code {code}); it is started again in {pause:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, LATE)


def python_of(config: FlowerConfig) -> str:
    """The interpreter that has Flower."""
    return config.python or sys.executable


def node_command(home: Path, config: FlowerConfig) -> list[str]:
    """How the SuperNode of a home is started. Raises ConfigError where its settings are not safe and nobody asked for that."""
    command = [python_of(config), *_MODULE, "pppml_flower.gate", "--superlink", _address(config), "--port", str(free_port())]
    if config.insecure:
        _refuse_both(config, "auth_key", "root_certificates")
        command.append("--insecure")
    elif config.auth_key is None:
        hint = "ssh-keygen -t ecdsa -b 384, and have the public key registered: flwr supernode register; or insecure: true, for tests"
        raise ConfigError("by which key does the SuperLink know this node?", place="engine.auth_key", hint=hint)
    else:
        command += ["--auth-supernode-private-key", _file(home, config, "auth_key")]
        if config.root_certificates is not None:
            command += ["--root-certificates", _file(home, config, "root_certificates")]
    return [*command, "--node-config", f'home="{home}"']


def superlink_command(home: Path, config: FlowerConfig) -> list[str]:
    """How the SuperLink beside the coordinator's home is started. Raises ConfigError as :func:`node_command` does."""
    host, _, port = _address(config).rpartition(":")
    command = [python_of(config), *_MODULE, "pppml_flower.superlink", "--host", host, "--port", port]
    command += ["--disable-runtime-dependency-installation", "--database", str(home / "superlink.db")]
    if config.insecure:
        _refuse_both(config, "certificate", "certificate_key", "root_certificates")
        return [*command, "--insecure"]
    for option, name in _SSL.items():
        if getattr(config, name) is None:
            hint = "a certificate for the name by which the sites reach this machine; or insecure: true, for tests"
            raise ConfigError("which certificate does the SuperLink show?", place=f"engine.{name}", hint=hint)
        command += [option, _file(home, config, name)]
    return [*command, "--enable-supernode-auth"]


_SSL = {"--ssl-certfile": "certificate", "--ssl-keyfile": "certificate_key", "--ssl-ca-certfile": "root_certificates"}


def _address(config: FlowerConfig) -> str:
    if config.superlink is None or not config.superlink.rpartition(":")[2].isdecimal():
        raise ConfigError("which SuperLink?", place="engine.superlink", hint="HOST:PORT, from whoever runs it")
    return config.superlink


def _refuse_both(config: FlowerConfig, *names: str) -> None:
    if given := [name for name in names if getattr(config, name) is not None]:
        hint = f"take `insecure` away, or {', '.join(given)}"
        raise ConfigError("without TLS there is no use for keys and certificates", place="engine.insecure", hint=hint)


def _file(home: Path, config: FlowerConfig, name: str) -> str:
    """A file named in a home; a relative name is one in the home."""
    path = home / Path(getattr(config, name)).expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", place=f"engine.{name}")
    return str(path)


def flower_environment(folder: Path, python: str = sys.executable) -> dict[str, str]:
    """The environment of Flower's processes on this machine: files under ``folder``, no telemetry, no updates, no installing; Flower's
    commands are those of the interpreter.
    """
    own = {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    }
    path = [str(Path(python).parent), os.environ.get("PATH", "")]
    return {**os.environ, **own, "PATH": os.pathsep.join(path)}


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
    """Once: a second signal would break off what the first began."""
    for stop in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(stop, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    # For a federation on one machine; people call `pppml site run`, which reads the same settings from site.yaml.
    end_with_starter()
    serve(Path(sys.argv[1]), FlowerConfig.model_validate_json(sys.argv[2]))

"""The process of a site: what is started, and what is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pppml_core.errors import RunFailed
from pppml_flower import site
from pppml_flower.config import FlowerConfig
from pppml_flower.gate import LOST
from pppml_flower.keeper import ADDRESS

INSECURE = FlowerConfig(superlink="127.0.0.1:9", insecure=True)


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """Plays a node, whose every process does the next thing of a list and notes who lives in the home by then."""
    told = tmp_path / "told"

    def play(*ends):
        line = """
import os, sys, signal
from pathlib import Path
told = Path(sys.argv[1])
before = told.read_text().split() if told.exists() else []
told.write_text(" ".join([*before, Path(os.environ["PPPML_HOME"], sys.argv[2]).read_text()]))
end = sys.argv[3 + len(before)]
if end == "stop":
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
sys.exit(int(end))
"""
        command = [sys.executable, "-c", line, str(told), ADDRESS, *map(str, ends)]
        monkeypatch.setattr(site, "node_command", lambda home, config: command)
        return lambda: told.read_text().split()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(site, "SOON", 0.01)
    yield play
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_node_that_lost_its_superlink_is_started_again_until_it_is_back(homes, nodes, capfd):
    """Also where the first tries fail because there is no network yet; and whoever lives in the home lives on."""
    told = nodes(LOST, 1, LOST, "stop")
    assert site.serve(homes(("a",))["a"], INSECURE) == 0
    assert len(told()) == 4
    assert len(set(told())) == 1, "one keeper"
    assert capfd.readouterr().err.count("out of reach") == 3


def test_a_node_that_was_never_connected_is_not(homes, nodes):
    told = nodes(1)
    with pytest.raises(RunFailed, match="exit code 1"):
        site.serve(homes(("a",))["a"], INSECURE)
    assert len(told()) == 1


@pytest.mark.parametrize("before", [True, False], ids=["before it began", "while it works"])
def test_the_process_of_a_message_ends_with_its_node(before):
    """However deaf it is, and also where the node was gone before it looked."""
    line = """
import signal, sys, threading
from types import SimpleNamespace
from pppml_flower import gate
def deaf():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("works", flush=True)
    threading.Event().wait()
gate.module_with = lambda *names: SimpleNamespace(flwr_clientapp=deaf)
gate.client_app()
"""
    node = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], "--parent-pid", str(os.getpid())])
time.sleep(float(sys.argv[2]))
"""
    command = [sys.executable, "-c", node, line, "0" if before else "3"]
    # Its end is the end of what it prints: until then somebody could still write there.
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=30, check=True)
    assert before or done.stdout == b"works\n"


def test_a_node_that_gave_its_connection_up_ends(monkeypatch):
    """Flower's own function returns then, and a server of its own goes on."""
    line = """
import threading
from pppml_flower import gate
class Flower:
    TASK_TYPE_TO_COMMAND = {}
    def __getattr__(self, name):
        return None
    def flower_supernode(self):
        threading.Thread(target=threading.Event().wait).start()
gate.module_with = lambda *names: Flower()
gate.super_node()
"""
    done = subprocess.run([sys.executable, "-c", line], timeout=60, check=False, env=dict(os.environ))
    assert done.returncode == LOST

"""No process is left over, however the one that started it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from pppml_nvflare.processes import end_tree

#: looks like NVFlare's, starts one more in a session of its own, and ignores Ctrl-C as NVFlare's client does.
SLEEPER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
more = len(sys.argv) > 2 and subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "nvflare"], start_new_session=True)
print("up", flush=True)
time.sleep(60)
"""
OUTER = """
import os, sys
from pathlib import Path
from pppml_nvflare.processes import run_until_stopped
sys.exit(run_until_stopped([sys.executable, "-c", sys.argv[1], "nvflare"], Path("."), dict(os.environ)))
"""


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGTERM,
        pytest.param(
            signal.SIGKILL, marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
        ),
    ],
)
def test_what_serves_a_site_ends_with_who_started_it(number):
    outer = subprocess.Popen([sys.executable, "-c", OUTER, SLEEPER], stdout=subprocess.PIPE)
    try:
        assert outer.stdout.readline() == b"up\n"
        inner = psutil.Process(outer.pid).children()
        outer.send_signal(number)
        assert outer.wait(30) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        assert len(inner) == 1
        assert gone(inner)
    finally:
        outer.kill()
        outer.stdout.close()


@pytest.mark.parametrize("patience", [0, 5])
def test_all_that_a_process_started_ends(patience):
    root = subprocess.Popen([sys.executable, "-c", SLEEPER, "nvflare", "more"], stdout=subprocess.PIPE)
    assert root.stdout.readline() == b"up\n"
    tree = [psutil.Process(root.pid), *psutil.Process(root.pid).children(recursive=True)]
    assert len(tree) == 2
    began = time.monotonic()
    end_tree(root.pid, patience)
    assert time.monotonic() - began < patience + 15
    root.wait(10)
    assert gone(tree)
    root.stdout.close()
    end_tree(root.pid, patience)  # nobody's any more


def test_another_ones_process_is_left_alone():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        end_tree(other.pid, 0)
        with suppress(subprocess.TimeoutExpired):
            other.wait(0.5)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()

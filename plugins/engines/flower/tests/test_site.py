"""The process of a site: what is started, and what is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

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

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
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
    assert capfd.readouterr().err.count("a: the node has ended") == 3


def test_a_node_that_is_not_let_in_is_started_again_for_a_while(homes, nodes):
    """A SuperLink holds one that ended without a word for connected, for a minute."""
    told = nodes(1, 1, "stop")
    assert site.serve(homes(("a",))["a"], INSECURE) == 0
    assert len(told()) == 3


def test_a_node_that_is_never_let_in_is_not(homes, nodes, monkeypatch):
    told = nodes(1)
    monkeypatch.setattr(site, "HELD", -1)
    with pytest.raises(RunFailed, match="exit code 1"):
        site.serve(homes(("a",))["a"], INSECURE)
    assert len(told()) == 1


def test_a_node_whose_signature_is_not_known_is_tried_again_later(homes, nodes, monkeypatch, capfd):
    """Flower interrupts it then: its clock may be wrong for a while, or a proxy answered in the SuperLink's stead."""
    told = nodes(0, 1, "stop")
    monkeypatch.setattr(site, "HELD", -1)
    monkeypatch.setattr(site, "LATE", 0.02)
    assert site.serve(homes(("a",))["a"], INSECURE) == 0
    assert len(told()) == 3
    assert "(exit code 0); it is started again in 0.02 s" in capfd.readouterr().err


class Clock:
    """Time that passes where somebody sleeps, or works."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_pauses_double_up_to_a_minute_and_begin_anew_after_a_node_that_lived(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(site, "time", clock)
    lives = [(1.0, -9), *[(0.0, 1)] * 6, (61.0, 1), (0.0, 1), (0.0, 0)]

    def run():
        if not lives:
            raise KeyboardInterrupt
        life, code = lives.pop(0)
        clock.now += life
        return code

    with pytest.raises(KeyboardInterrupt):
        site._attend(run, "a")
    assert clock.slept == [2, 4, 8, 16, 32, 60, 60, 2, 4, 60]


def test_a_second_signal_does_not_break_off_what_the_first_began(homes):
    """Whoever stops a federation tells every process of it, and a service manager tells whole groups."""
    line = """
import os, signal, subprocess, sys
from pathlib import Path
from pppml_flower import site
def end(process):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    before(process)
before, site.end = site.end, end
site.node_command = lambda home, config: [
    sys.executable, "-c", "import os, signal; os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
]
print(site.serve(Path(sys.argv[1]), site.FlowerConfig(superlink="127.0.0.1:9", insecure=True)))
"""
    home = homes(("a",))["a"]
    done = subprocess.run([sys.executable, "-c", line, str(home)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert not (home / ADDRESS).exists()


@pytest.mark.parametrize("before", [True, False], ids=["before it began", "while it works"])
def test_the_executor_of_a_node_ends_with_it(before, tmp_path):
    """However deaf it is, and also where the node was gone before it looked."""
    line = """
import signal, sys, threading
from pathlib import Path
from types import SimpleNamespace
from pppml_flower import executor
def deaf():
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    print("works", flush=True)
    Path(sys.argv[1]).touch()
    threading.Event().wait()
executor.module_with = lambda *names: SimpleNamespace(flower_superexec=deaf)
if __name__ == "__main__":
    executor.executor()
"""
    node = """
import os, subprocess, sys, time
from pathlib import Path
place = Path(sys.argv[2])
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(place), "--parent-pid", str(os.getpid())])
while sys.argv[3] == "wait" and not place.exists():
    time.sleep(0.05)
"""
    words = [line, str(tmp_path / "works"), "go" if before else "wait"]
    began = subprocess.Popen([sys.executable, "-c", node, *words], stdout=subprocess.PIPE, start_new_session=True)
    try:
        # Its end is the end of what it prints: until then somebody could still write there.
        told, _ = began.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(began.pid, signal.SIGKILL)
    assert before or told == b"works\n"


def test_the_process_of_a_message_is_forked_and_ends_with_the_executor():
    """It is Flower's own, and asks for ever a node that is not there."""
    line = """
import os, sys, threading
from types import SimpleNamespace
from flwr.supercore.superexec.executor import subprocess_executor as launching
from pppml_flower import executor
def work():
    executor._watch = lambda heard: threading.Event().wait()  # and heard is held
    for _ in range(2):
        launching.subprocess.Popen(["flwr-clientapp", "--runtime-api-address", "127.0.0.1:9", "--token", "x", "--insecure"])
    threading.Event().wait()
if __name__ == "__main__":
    real, ours = executor.module_with, SimpleNamespace(flower_superexec=work)
    executor.module_with = lambda name, *needed: ours if name == "flwr.supercore.cli" else real(name, *needed)
    executor.executor()
"""
    began = subprocess.Popen([sys.executable, "-c", line], stderr=subprocess.PIPE, start_new_session=True)
    try:
        assert began.stderr is not None
        started = 0
        while started < 2:
            line = began.stderr.readline()
            assert line, "it has ended"
            started += b"Start `flwr-clientapp` process" in line
        began.kill()
        began.communicate(timeout=60)  # the end of what it prints: nobody is left that could
    finally:
        with suppress(ProcessLookupError):
            os.killpg(began.pid, signal.SIGKILL)


def test_the_process_of_a_message_has_loaded_flower_before_it_begins(tmp_path):
    """What cannot be loaded a fork server passes over in silence; an interpreter of its own takes 2 s a message."""
    (tmp_path / "deed.py").write_text("""
import os, sys
loaded = set(sys.modules)
def done(command, line):
    needed = {"flwr.supernode.runtime.run_clientapp", "flwr.supernode.cli", "pppml_flower.client", "pppml_flower.executor"}
    print(os.getppid(), sorted(needed - loaded), "torch" in loaded, flush=True)
""")
    line = """
import os, sys, time
from types import SimpleNamespace
from flwr.supercore.superexec.executor import subprocess_executor as launching
from pppml_flower import executor
from deed import done
def ended(heard):
    try:
        heard.recv_bytes()
    except EOFError:
        print(executor.forkserver._forkserver._forkserver_pid, flush=True)
        os._exit(0)
def work():
    executor._watch = ended
    launching.subprocess.Popen(["flwr-clientapp"])
    time.sleep(60)
if __name__ == "__main__":
    executor.client_app = done
    real, ours = executor.module_with, SimpleNamespace(flower_superexec=work)
    executor.module_with = lambda name, *needed: ours if name == "flwr.supercore.cli" else real(name, *needed)
    executor.executor()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, timeout=60, check=False, env=environment)
    told, server = done.stdout.splitlines()
    assert told == f"{server} [] False", done.stderr


@pytest.mark.parametrize(
    ("end", "stays"),
    [
        ("die()", False),
        ("work.pull_task_input(die)", False),
        ("work.pull_task_input(list); die()", True),
        ("work.pull_task_input(list); work.push_message(die)", False),
        ("work.pull_task_input(list); work.push_message(fail)", False),
        ("work.pull_task_input(list); work.push_message(list); die()", False),
        ("work.pull_task_input(list); work.push_message(list); finish(die, context)", False),
        ("work.pull_task_input(list); work.push_message(list); finish(list, context); sys.exit(1)", True),
        ("work.pull_task_input(list); work.push_message(list); finish(list, context); die()", True),
        ("work.pull_task_input(list); work.push_message(list); finish(interrupted, context)", True),
        ("finish(list, None)", False),
    ],
)
def test_an_executor_ends_with_what_leaves_flowers_node_waiting(end, stays, tmp_path):
    """The node ends too then, and is started again. And with nothing else: a message may be answered by an error, and Flower interrupts
    processes that have answered.
    """
    (tmp_path / "deed.py").write_text(f"""
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from pppml_flower import executor
context = "context"
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def fail():
    raise OSError
def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
def call(what):
    what()
def output(client, context, sub_status):
    assert sub_status == "completed"
    client.PushTaskOutput("request")
def finish(what, context):
    work.push_task_output(client=SimpleNamespace(PushTaskOutput=lambda request: what()), context=context, sub_status="completed")
def done():
    Path({str(tmp_path)!r}, str(os.getpid())).touch()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    {end}
work = SimpleNamespace(
    pull_task_input=call, push_message=call, push_task_output=output, register_signal_handlers=None, flwr_clientapp=done
)
executor.module_with = lambda *names: work
""")
    line = """
import multiprocessing, sys, time
from pathlib import Path
from pppml_flower import executor
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deed"])
    for _ in range(3):
        executor._start(context, ["flwr-clientapp"])
    while multiprocessing.active_children():
        time.sleep(0.05)
    time.sleep(0.5 if sys.argv[1] == "True" else 60)
    print("goes on", flush=True)
    sys.exit(7)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", line, str(stays)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stdout) == ((7, "goes on\n") if stays else (1, "")), done.stderr
    assert ("before Flower's node had all of its answer" in done.stderr) is not stays
    reached = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert len(reached) == 3 if stays else reached


@pytest.mark.parametrize("what", ["pull_task_input", "push_message"])
def test_a_message_that_cannot_be_read_or_answered_ends_its_process(what):
    """Nothing more is said to Flower's node, which takes it for killed and says so; of a failure it would say nothing."""
    line = """
import sys
from types import SimpleNamespace
from unittest import mock
from pppml_flower import executor
def broken(client):
    raise AttributeError("no such object")
def work():
    try:
        getattr(runtime, sys.argv[1])("the node")
    finally:
        print("told the node")
runtime = SimpleNamespace(
    pull_task_input=broken, push_message=broken, push_task_output=None, register_signal_handlers=None, flwr_clientapp=work
)
executor.module_with = lambda *names: runtime
executor.client_app(["flwr-clientapp", sys.argv[1]], mock.Mock())
"""
    done = subprocess.run([sys.executable, "-c", line, what], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such object" in done.stderr


def test_a_process_of_a_message_that_is_told_to_stop_says_nothing_more():
    """As if it had been killed; what Flower does at the end of one that is not, it does."""
    line = """
import os, signal
from unittest import mock
from flwr.supercore.exit import exit_handler
from flwr.supernode.runtime import run_clientapp as work
import flwr.supernode.cli
from pppml_flower import executor
def started():
    work.register_signal_handlers(event_type=None, exit_message="", exit_handlers=[lambda: print("told the node", flush=True)])
    if os.fork() == 0:
        exit_handler.trigger_exit_handlers(run_before_force_exit=False)
        os._exit(0)
    os.wait()
    os.kill(os.getpid(), signal.SIGTERM)
flwr.supernode.cli.flwr_clientapp = started
executor.client_app(["flwr-clientapp"], mock.Mock())
"""
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "told the node\n"), done.stderr


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("pass", LOST),
        ("raise RuntimeError", 1),
        ("sys.exit(3)", 3),
        ("threading.Thread(target=lambda: 1 / 0).start(); stay()", LOST),
        ("threading.Thread(target=sys.exit).start(); sys.exit(3)", 3),
        ("threading.Thread(target=unknown).start(); sys.exit(3)", 3),
        ("self.subprocess.Popen(['flower-superexec']); stay()", LOST),
        ("self.subprocess.Popen(['flwr-agentapp'])", "does not know how to keep it in bounds"),
    ],
    ids=["it returns", "it raises", "it exits", "a thread fails", "a thread exits", "401", "its executor ends", "another command"],
)
def test_a_node_that_flower_has_given_up_ends(fault, code):
    """A server of its own would go on."""
    line = f"""
import signal, sys, threading
from types import SimpleNamespace
from pppml_flower import executor, gate
signal.signal(signal.SIGTERM, lambda *told: sys.exit(0))
stay = threading.Event().wait
def unknown():
    error = RuntimeError()
    error.response = SimpleNamespace(status_code=401)
    raise error
class Flower:
    subprocess = None
    def __getattr__(self, name):
        return None
    def flower_supernode(self):
        threading.Thread(target=stay, daemon={"exit" in fault}).start()
        {fault}
flower = Flower()
gate.module_with = executor.module_with = lambda *names: flower
gate._GRACE, gate._OURS = 0, (sys.executable, "-c", "pass")
gate.super_node()
"""
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, timeout=60, check=False)
    if isinstance(code, str):
        assert code in done.stderr
        assert done.returncode == 1
    else:
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize("part", ["its executor", "its heartbeat"])
def test_a_node_of_which_a_part_has_ended_takes_its_leave(part):
    """Of the SuperLink, which otherwise lets no other in under its key for a minute. Before, it waits for its heartbeat to end."""
    line = """
import sys, threading, time
import flwr.supernode.cli
from flwr.supernode import start_client_internal as loop
from pppml_flower import gate
def node():
    thread = threading.Thread(target=(lambda: 1 / 0) if sys.argv[1] == "its heartbeat" else list)
    def leave():
        thread.join()
        print("took its leave", flush=True)
    loop.register_signal_handlers(event_type=None, exit_message="", exit_handlers=[leave])
    thread.start()
    if sys.argv[1] == "its executor":
        loop.subprocess.Popen(["flower-superexec"])
    time.sleep(30)
flwr.supernode.cli.flower_supernode = node
gate._OURS = (sys.executable, "-c", "pass")
gate.super_node()
"""
    done = subprocess.run([sys.executable, "-c", line, part], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (LOST, "took its leave\n"), done.stderr


def test_a_process_ends_also_where_nothing_can_be_printed():
    """What it prints may go to a disk that is full, or to nobody any more."""
    line = "from pppml_flower.gate import leave, say\nprint('waits to be flushed')\nsay('x')\nleave(75)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", line], stdout=full, stderr=full, timeout=60, check=False, env=environment)
    assert done.returncode == 75


def test_a_node_that_is_stopped_takes_its_leave_whatever_else_it_is_told():
    """A service manager tells the whole group, and the site tells its node."""
    line = """
import os, signal, sys, time
from flwr.supercore.exit import register_signal_handlers
from flwr.supernode import start_client_internal as loop
from pppml_flower import gate
def leave():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    print("took its leave", flush=True)
gate._stop_once()
loop.register_signal_handlers(event_type=None, exit_message="", exit_handlers=[leave])
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "took its leave\n"), done.stderr

"""The coordinator's door and the line behind it: tokens, strangers, frames in parts, deadlines; and site processes that misbehave."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pppml_core.engines import processes
from pppml_core.engines.config import ProcessesConfig
from pppml_core.engines.faults import Fault, Strike
from pppml_core.engines.processes import Processes, ProcessesEngine
from pppml_core.engines.sockets import HALF, MAX_FRAME, Door, Line, knock
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.interfaces.engine import Job, Loss
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message


@pytest.fixture
def door():
    made = Door()
    yield made
    made.close()


@pytest.fixture
def ends():
    one, other = socket.socketpair(socket.AF_INET if sys.platform == "win32" else socket.AF_UNIX)
    lines = []
    for end in (one, other):
        line = Line.__new__(Line)
        line._socket, line._held = end, bytearray()
        lines.append(line)
    yield lines
    for line in lines:
        line.close()


def soon(seconds=0.2):
    return time.monotonic() + seconds


# -- the line -----------------------------------------------------------------------------------------------------------------------------


def test_frames_arrive_whole_and_in_order(ends):
    here, there = ends
    large = os.urandom(3_000_000)
    sender = threading.Thread(target=lambda: [here.send(1, b"about", large), here.send(2, b"", b"")])
    sender.start()
    assert there.receive(soon(10)) == (1, b"about", large)
    assert there.receive(soon(10)) == (2, b"", b"")
    sender.join()


def test_a_deadline_keeps_what_has_arrived(ends):
    here, there = ends
    frame = struct.pack("<QQQ", 7, 2, 4) + b"xyabcd"
    for cut in (3, 20, 27):
        here._socket.sendall(frame[:cut])
        with pytest.raises(TimeoutError):
            there.receive(soon(0.05))
        here._socket.sendall(frame[cut:])
        assert there.receive(soon()) == (7, b"xy", b"abcd")


@pytest.mark.parametrize("head", [(1, 2**21, 0), (1, 0, MAX_FRAME + 1), (2**64 - 1, 2**63, 2**63)])
def test_a_length_that_cannot_be_is_an_error_before_anything_is_held(ends, head):
    here, there = ends
    here._socket.sendall(struct.pack("<QQQ", *head))
    with pytest.raises(OSError, match="a frame of"):
        there.receive(soon())


def test_an_announced_length_costs_nothing_before_it_arrives(ends):
    here, there = ends
    here._socket.sendall(struct.pack("<QQQ", 1, 0, MAX_FRAME))
    with pytest.raises(TimeoutError):
        there.receive(soon(0.05))
    assert len(there._held) == 24


def test_a_closed_line_is_told(ends):
    here, there = ends
    here.close()
    with pytest.raises(EOFError):
        there.receive(soon())
    with pytest.raises(OSError, match=r".+"):
        there.send(1, b"", bytes(10), soon())


def test_a_reader_that_does_not_read_does_not_hold_the_sender(ends):
    with pytest.raises(TimeoutError):
        ends[0].send(1, b"", bytes(20_000_000), soon())


# -- the door -----------------------------------------------------------------------------------------------------------------------------


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def closed(connection):
    """Whether the other end has hung up."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_who_shows_the_token_is_let_in_and_sees_the_other_half(door):
    token, arrival = door.expect()
    there = knock(door.port, token)
    here = arrival.result(5)
    there.send(1, b"a", b"hello")
    assert here.receive(soon(5)) == (1, b"a", b"hello")
    here.close()
    there.close()


def test_a_token_opens_once(door):
    token, arrival = door.expect()
    knock(door.port, token).close()
    arrival.result(5).close()
    with pytest.raises(ConnectionError):
        knock(door.port, token)


def test_the_loopback_interface_only(door):
    assert door._listening.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "shown", [bytes(HALF), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", os.urandom(4096)], ids=["zeros", "http", "noise"]
)
def test_strangers_are_sent_away_and_keep_nobody_out(door, shown):
    token, arrival = door.expect()
    stranger, silent = connected(door.port), connected(door.port)
    stranger.sendall(shown)
    assert closed(stranger)
    there = knock(door.port, token)
    arrival.result(5).close()
    for end in (stranger, silent, there):
        end.close()


def test_the_door_stays_open_when_descriptors_run_out(door, monkeypatch):
    real, left = door._listening.accept, iter([OSError(24, "Too many open files")] * 3)

    class Short:
        def accept(self):
            for error in left:
                raise error
            return real()

        def __getattr__(self, name):
            return getattr(real.__self__, name)

    monkeypatch.setattr(door, "_listening", Short())
    connected(door.port).close()  # wakes the listener, which meets the shortage from now on
    token, arrival = door.expect()
    knock(door.port, token).close()
    arrival.result(5).close()


def test_idle_strangers_do_not_keep_out_whom_is_awaited(door):
    strangers = [connected(door.port) for _ in range(80)]
    token, arrival = door.expect()
    threading.Timer(0.4, lambda: [stranger.close() for stranger in strangers]).start()
    knock(door.port, token).close()
    arrival.result(5).close()


def test_half_a_token_is_none_and_the_second_half_is_never_shown_to_a_stranger(door):
    token, arrival = door.expect()
    stranger = connected(door.port)
    stranger.sendall(token[: HALF - 1] + bytes([token[HALF - 1] ^ 1]))
    assert stranger.recv(HALF) == b""
    assert not arrival.done()
    stranger.close()


def test_a_forgotten_token_opens_nothing(door):
    token, arrival = door.expect()
    door.forget(token)
    assert arrival.cancelled()
    with pytest.raises(ConnectionError):
        knock(door.port, token)


def test_a_site_does_not_serve_a_coordinator_that_does_not_know_its_token():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(HALF)
                connection.sendall(bytes(HALF))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError, match="not the coordinator"):
            knock(listening.getsockname()[1], os.urandom(2 * HALF))
        thread.join()


def test_a_closed_door_lets_nobody_in():
    door = Door()
    token, arrival = door.expect()
    door.close()
    door.close()
    assert arrival.cancelled()
    with pytest.raises(OSError, match=r".+"):
        knock(door.port, token)
    assert not door._thread.is_alive()


# -- site processes without their libraries: what the coordinator does when they misbehave ----------------------------------------------

#: A site process that answers each request with its own bytes, or does what the request's stage says.
ECHO = """
import os, sys, time
from pppml_core.engines.sockets import knock
from pppml_core.engines.worker import read_frame
from pppml_core.wire.codec import decode, decode_message, encode

settings = decode(read_frame(sys.stdin.buffer))
ABOUT = {"clock": {"train": 1.0}, "error": "", "place": "", "hint": "", "code": 0, "traceback": ""}
if settings["config"].get("first") == "die":
    sys.exit(7)
line = knock(settings["port"], settings["token"])
if settings["config"].get("first") == "refuse":
    line.send(0, encode({**ABOUT, "error": "no identity", "code": 2}), b"")
    sys.exit(1)
line.send(0, encode(ABOUT), b"")
while True:
    try:
        number, _, frame = line.receive()
    except (OSError, EOFError):
        sys.exit(0)
    stage = decode_message(frame).stage
    if stage == "slow":
        time.sleep(0.5)
    if stage == "garbage":
        line._socket.sendall(os.urandom(64))
        continue
    if stage == "half":
        line._socket.sendall(bytes(12))
        os._exit(3)
    if stage == "other-number":
        line.send(number + 5, encode(ABOUT), frame)
        continue
    about = {"no-map": encode([1]), "no-frame": b"\\x00" * 9, "other-clock": encode({**ABOUT, "clock": {"train": "long"}})}
    if stage == "fault":
        about["fault"] = encode({**ABOUT, "error": "ValueError: bad", "code": 1, "traceback": "line 1"})
    line.send(number, about.get(stage, encode(ABOUT)), frame)
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Transports to echoing site processes; all of them are gone at the end."""
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setenv("PYTHONPATH", str(Path(processes.__file__).resolve().parents[2]))
    made = []

    def start(sites=("a", "b"), first="", **settings):
        job = Job(bytes(16), {"training": {"threads": 1}, "first": first}, tmp_path / "sites", tuple(sites), dict.fromkeys(sites, 1), {})
        transport = Processes(job, ProcessesConfig(**{"timeout": 10.0, **settings}))
        made.append(transport)
        return transport

    yield start
    for transport in made:
        transport.close()
        transport.close()
        assert all(site._process.poll() is not None for site in transport._sites.values())
    assert not psutil.Process().children()


def frame(site, stage="add", kind="session", size=0):
    return encode_message(Message(bytes(16), 1, 1, kind, stage, SERVER, site, {"x": bytes(size)}))


def ask(transport, stage="add", sites=("a", "b"), kind="session", size=0):
    asked = {s: frame(s, stage, kind, size) for s in sites}
    replies = dict(transport.deliver(asked.items()))
    assert set(replies) == set(sites)
    return {s: "same" if r == asked[s] else r for s, r in replies.items()}


def test_what_comes_back_is_what_was_answered(launch):
    transport = launch()
    for size in (0, 10, 5_000_000):
        assert ask(transport, size=size) == {"a": "same", "b": "same"}
    assert transport.clock() == {"train": 2.0}
    assert transport.remarks() == []


def test_sites_are_busy_at_the_same_time_and_no_more_than_allowed(launch):
    for parallel, least, most in ((3, 0.49, 1.4), (1, 1.49, 9.0)):
        transport = launch("abc", parallel=parallel)
        assert transport.parallel == parallel
        began = time.monotonic()
        ask(transport, "slow", "abc")
        assert least < time.monotonic() - began < most


@pytest.mark.parametrize("stage", ["garbage", "half", "no-map", "no-frame", "other-clock"])
def test_an_answer_that_is_none_is_a_lost_site_and_its_process_ends(launch, stage):
    transport = launch(restart=False)
    replies = ask(transport, stage, ("a",))
    assert replies["a"].handed
    assert ask(transport)["b"] == "same"
    assert ask(transport, kind="open")["a"] == Loss(
        "its process ended (exit code -9)" if stage != "half" else "its process ended (exit code 3)", False
    )


def test_an_answer_to_another_request_is_nobodys(launch):
    transport = launch(timeout=0.5)
    assert ask(transport, "other-number", ("a",))["a"] == Loss("no answer within 0.5 seconds", handed=True)
    assert ask(transport)["a"] == "same"


def test_a_late_answer_is_passed_over(launch):
    transport = launch(timeout=0.25)
    assert ask(transport, "slow", ("a",))["a"].handed
    assert ask(transport, sites=("b",))["b"] == "same"
    time.sleep(0.5)
    assert ask(transport, "add") == {"a": "same", "b": "same"}


def test_a_fault_in_a_parts_code_ends_the_run_with_its_place(launch):
    with pytest.raises(RunFailed, match="ValueError: bad") as caught:
        ask(launch(), "fault")
    assert "site a" in str(caught.value) or "site b" in str(caught.value)
    assert "--resume" in caught.value.hint


@pytest.mark.parametrize(
    ("first", "error", "text"), [("die", RunFailed, r"did not come up \(exit code 7\)"), ("refuse", ConfigError, "no identity")]
)
def test_a_site_that_does_not_come_up_is_told_and_leaves_nobody_behind(launch, first, error, text):
    before = threading.active_count()
    with pytest.raises(error, match=text) as caught:
        launch(first=first)
    assert "site a" in str(caught.value)
    assert not psutil.Process().children()
    assert threading.active_count() <= before + 1


STRIKES = {"kill-before": False, "kill": True, "stall": True}


@pytest.mark.parametrize("do", STRIKES)
def test_a_strike_loses_the_site_and_tells_whether_it_had_the_request(launch, do):
    transport = launch(faults=[Strike(site="a", stage="add", do=do)], timeout=1.0)
    replies = ask(transport)
    assert replies["b"] == "same"
    assert replies["a"].handed is STRIKES[do]
    assert transport.remarks() == []
    again = ask(transport, "next")["a"]
    if do == "stall":
        assert again == "same", "it goes on, and its late answer is dropped"
    else:
        assert again == Loss("its process ended (exit code -9)", handed=False)
        before = transport.clock()["train"]
        assert ask(transport, kind="open")["a"] == "same", "the next attempt starts it again"
        assert transport.clock()["train"] == before + 1, "and its clock goes on"


def test_killed_after_its_reply_it_has_replied(launch):
    transport = launch(faults=[Strike(site="a", do="kill-after")])
    assert ask(transport) == {"a": "same", "b": "same"}
    assert not ask(transport)["a"].handed


def test_a_request_that_a_stalled_site_cannot_take_in_was_not_handed_to_it(launch):
    transport = launch(faults=[Strike(site="a", do="stall")], timeout=1.0)
    lost = ask(transport, size=40_000_000)["a"]
    assert not lost.handed
    assert "could not be handed over" in lost.reason


def test_without_restart_a_dead_site_stays_dead(launch):
    transport = launch(restart=False, faults=[Strike(site="a", do="kill")])
    ask(transport)
    for kind in ("open", "evaluate", "session"):
        assert not ask(transport, kind=kind)["a"].handed


def test_a_process_killed_from_outside_is_noticed_at_once(launch):
    transport = launch(timeout=60.0)
    pid = transport._sites["a"]._process.pid
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    began = time.monotonic()
    assert ask(transport, "slow", ("a",))["a"] == Loss("its process ended (exit code -9)", handed=True)
    assert time.monotonic() - began < 5


def test_a_site_that_does_not_come_up_again_is_lost(launch):
    transport = launch(faults=[Strike(site="a", do="kill")])
    ask(transport)
    transport._sites["a"]._job.config["first"] = "die"
    lost = ask(transport, kind="open")["a"]
    assert "did not come up again" in lost.reason
    assert not lost.handed


def test_what_was_meant_to_happen_and_did_not_is_remarked(launch):
    transport = launch(faults=[Strike(site="a", stage="never", do="kill"), Strike(site="z", do="stall")])
    ask(transport)
    assert sorted(transport.remarks()) == [
        "engine.faults: a fault never struck (site: a, stage: never, do: kill); check its site, stage and round",
        "engine.faults: a fault never struck (site: z, do: stall); check its site, stage and round",
    ]


def test_closing_in_the_middle_of_a_request_frees_whoever_waits(launch):
    transport = launch()
    replies = []
    waiting = threading.Thread(target=lambda: replies.extend(transport.deliver([("a", frame("a", "slow"))])))
    waiting.start()
    time.sleep(0.2)
    transport.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert all(isinstance(reply, Loss) for _, reply in replies)


def test_tokens_are_neither_on_command_lines_nor_in_environments(launch, monkeypatch):
    tokens = []
    expect = Door.expect
    monkeypatch.setattr(Door, "expect", lambda self: tokens.append(expect(self)) or tokens[-1])
    transport = launch()
    for site, (token, _) in zip(transport._sites.values(), tokens, strict=True):
        told = psutil.Process(site._process.pid)
        shown = " ".join([*told.cmdline(), *told.environ().values()]) + repr(vars(transport._door))
        assert token.hex() not in shown
        assert transport._door._expected == {}, "a token that was used is known no more"


def test_what_the_engine_refuses(tmp_path):
    engine = ProcessesEngine(ProcessesConfig(homes=str(tmp_path / "none")))
    first, second = engine.misfits({"model": object()})
    assert "live Python objects (model)" in first
    assert "engine.homes: there is no folder" in second
    assert ProcessesEngine(ProcessesConfig()).misfits({}) == []
    assert ProcessesEngine(ProcessesConfig()).topology == "star"


def test_faults_of_both_kinds_are_told_apart():
    config = ProcessesConfig(faults=[{"site": "a", "do": "kill"}, {"site": "a", "do": "drop"}])
    assert [type(fault) for fault in config.faults] == [Strike, Fault]
    assert decode_message(frame("a")).stage == "add"

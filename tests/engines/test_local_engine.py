"""The local engine and the courier: each site answers once, workers end with their run, and a lost worker is told."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from pppml_core.api import Experiment
from pppml_core.engines.config import LocalConfig
from pppml_core.engines.courier import Address, Courier
from pppml_core.engines.local import LocalEngine, Workers, spread
from pppml_core.engines.worker import read_frame, write_frame
from pppml_core.errors import RunFailed
from pppml_core.interfaces.engine import Loss
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.manifest import Manifest, WireField
from pppml_core.wire.messages import SERVER, Exchange, Message, Relay
from pppml_core.wire.transcript import Transcript, read_transcript

RUN = b"r" * 16
FIELDS = Manifest([WireField("add", "n", "int", (), 8, "in the clear", "a number")])


class Scripted:
    """Answers each site's frame with what the script says."""

    def __init__(self, script):
        self.script, self.handed = script, []

    def deliver(self, frames):
        for site, frame in frames:
            message = decode_message(frame)
            self.handed.append((message.sender, site))
            for answer in self.script.get(site, [{"n": len(site)}]):
                if isinstance(answer, bytes | Loss):
                    yield site, answer
                else:
                    yield site, encode_message(Message(RUN, 1, 1, "reply", message.stage, site, SERVER, answer))


@pytest.fixture
def perform(tmp_path):
    def go(operation, script, topology="p2p"):
        transport, events = Scripted(script), []
        with Transcript(tmp_path) as transcript:
            outcome = Courier(transport, topology, transcript, events.append).perform(operation, Address(RUN, 1, 1), FIELDS)
        return outcome, transport, events, read_transcript(tmp_path)

    return go


def other(**changes):
    header = {"run": RUN, "round": 1, "attempt": 1, "kind": "reply", "stage": "add", "sender": "b", "recipient": SERVER, **changes}
    return encode_message(Message(**header, body={"n": 1}))


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([Loss("gone", handed=True)], "gone"),
        ([], "no reply came"),
        ([b"junk"], "could not be read"),
        ([other(run=b"x" * 16)], "another run"),
        ([other(round=2)], "another run, round"),
        ([other(attempt=2)], "attempt"),
        ([other(stage="sub")], "stage"),
        ([other(sender="a")], "site"),
        ([other(recipient="c")], "site"),
        ([other(kind="session")], "'session' message"),
        ([other(kind="refused")], "refused"),
        ([{"m": 1}], "manifest"),
        ([{"n": "1"}], "manifest"),
    ],
    ids=str,
)
def test_a_reply_that_does_not_fit_is_a_lost_site(perform, answers, reason):
    folded = []
    outcome, _, events, _ = perform(Exchange("add", {s: {} for s in "abc"}, lambda s, b: folded.append(s)), {"b": answers})
    assert outcome.answered == ("a", "c")
    assert reason in outcome.lost["b"]
    assert folded == ["a", "c"]
    assert [e["site"] for e in events if e["event"] == "site-lost"] == ["b"]


def test_a_second_answer_is_not_folded_again(perform):
    folded = []
    outcome, *_ = perform(Exchange("add", {s: {} for s in "ab"}, lambda s, b: folded.append((s, b["n"]))), {"a": [{"n": 5}, {"n": 6}]})
    assert folded == [("a", 5), ("b", 1)]
    assert outcome.answered == ("a", "b")


def test_answers_of_sites_that_were_not_asked_are_passed_over(perform):
    class Chatty(Scripted):
        def deliver(self, frames):
            yield "z", other(sender="z")
            yield from super().deliver(frames)

    assert perform(Exchange("add", {"a": {}}), {})[0].answered == ("a",)
    with_chatter = Courier(Chatty({}), "p2p", _Silent()).perform(Exchange("add", {"a": {}}), Address(RUN, 1, 1), FIELDS)
    assert with_chatter.answered == ("a",)


class _Silent:
    def append(self, *args, **kwargs):
        """Keeps nothing."""


def test_common_and_own_bodies_are_joined_and_outcomes_come_in_order(perform):
    first, second = Exchange("add", {"a": {}, "bb": {}}, common={"x": 1}), Exchange("add", {"ccc": {}})
    outcomes, transport, events, hops = perform([first, second], {})
    assert [o.replies for o in outcomes] == [{"a": {"n": 1}, "bb": {"n": 2}}, {"ccc": {"n": 3}}]
    assert transport.handed == [(SERVER, "a"), (SERVER, "bb"), (SERVER, "ccc")]
    stages = [e for e in events if e["event"] == "stage"]
    assert sum(e["sent"] + e["received"] for e in stages) == sum(h.size for h in hops)


@pytest.mark.parametrize("topology", ["p2p", "star"])
def test_a_relay_goes_from_site_to_site(perform, topology):
    outcome, transport, _, hops = perform(Relay("add", ("a", "bb", "ccc"), {"n": 0}), {}, topology)
    assert outcome.body == {"n": 3}
    assert outcome.visited == ("a", "bb", "ccc")
    assert transport.handed == [(SERVER, "a"), ("a", "bb"), ("bb", "ccc")]
    links = [(h.sender, h.recipient) for h in hops]
    direct = [(SERVER, "a"), ("a", "bb"), ("bb", "ccc"), ("ccc", SERVER)]
    assert links == (
        direct if topology == "p2p" else [direct[0], ("a", SERVER), (SERVER, "bb"), ("bb", SERVER), (SERVER, "ccc"), direct[3]]
    )


def test_a_relay_bridges_only_who_never_had_the_message(perform):
    never, had = [Loss("away", handed=False)], [Loss("died", handed=True)]
    path = ("a", "bb", "ccc")
    assert perform(Relay("add", path, {"n": 0}, bridge=True), {"bb": never})[0].bridged == ("bb",)
    for bridge, script in ((True, had), (False, never)):
        outcome = perform(Relay("add", path, {"n": 0}, bridge=bridge), {"bb": script})[0]
        assert (outcome.body, outcome.visited, list(outcome.lost)) == (None, ("a",), ["bb"])


# -- workers ------------------------------------------------------------------------------------------------------------------


def test_frames_over_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    with open(path, "wb") as pipe:
        write_frame(pipe, b"one")
        write_frame(pipe, b"")
    with open(path, "rb") as pipe:
        assert (read_frame(pipe), read_frame(pipe)) == (b"one", b"")
        with pytest.raises(EOFError):
            read_frame(pipe)
    path.write_bytes(b"\xff" * 8)
    with open(path, "rb") as pipe, pytest.raises(OSError, match="bytes"):
        read_frame(pipe)
    path.write_bytes(b"\x05" + bytes(7) + b"abc")
    with open(path, "rb") as pipe, pytest.raises(EOFError, match="within"):
        read_frame(pipe)


def test_the_number_of_threads_is_given_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Experiment(task="tiny", run={"rounds": 1}, registry=Registry.only()).run(tmp_path / "r", reporters=False, report=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_worker_that_dies_is_told_and_the_run_goes_on_later(tmp_path, monkeypatch):
    started = []

    class Watched(Workers):
        def __init__(self, *args):
            super().__init__(*args)
            started.extend(self._processes)

        def deliver(self, frames):
            frames = list(frames)
            if decode_message(frames[0][1]).kind == "session" and len(started) == 2:
                os.kill(started[0].pid, signal.SIGKILL)
                started[0].wait()
            return super().deliver(frames)

    monkeypatch.setattr("pppml_core.engines.local.Workers", Watched)
    made = Experiment(task="tiny", run={"rounds": 1}, engine={"use": "local", "workers": 2})
    with pytest.raises(RunFailed, match="worker process ended") as caught:
        made.run(tmp_path / "r", reporters=False, report=False)
    assert "resume" in caught.value.hint
    assert all(p.poll() is not None for p in started), "no worker outlives its run"
    run = made.run(tmp_path / "r", reporters=False, report=False)
    assert all(p.poll() is not None for p in started)
    plain = Experiment(task="tiny", run={"rounds": 1}, registry=Registry.only()).run(tmp_path / "p", reporters=False, report=False)
    assert run.result["model_sha256"] == plain.result["model_sha256"]


def test_sites_are_spread_by_size_and_live_in_one_worker():
    engine = LocalEngine(LocalConfig(workers=2))
    assert engine.misfits({}) == []
    assert "workers" in engine.misfits({"model": object()})[0]
    sizes = {"a": 10, "b": 60, "c": 30, "d": 20}
    home = spread(sizes, 2)
    loads = [sum(n for s, n in sizes.items() if home[s] == worker) for worker in (0, 1)]
    assert loads == [60, 60]
    assert set(spread(dict.fromkeys("abcdef", 0), 3).values()) == {0, 1, 2}, "sites without examples are spread too"

"""Asking a site, against a Collab that fails as told: what is handed over, how often, and what a failure means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="NVFlare is not installed here")

from nvflare.collab.api.context import set_call_context
from nvflare.collab.api.exceptions import CollabCallError, RunAborted

from pppml_core.errors import RunFailed
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.codec import decode, decode_message, encode, encode_message
from pppml_core.wire.messages import SERVER, Message
from pppml_nvflare.calls import Caller, replied
from pppml_nvflare.forms import read_walk, write_walk
from pppml_nvflare.homes import HOME, HOMES
from pppml_nvflare.site import Desk

RUN = b"r" * 16


def message(sender, recipient, **body):
    return Message(RUN, 1, 1, "session", "ring", sender, recipient, body)


class Site:
    """A proxy: answers calls from a script, in order; the last entry for ever. ``None``: the call fails."""

    def __init__(self, *script):
        self.script, self.requests = list(script), []

    def __call__(self, timeout, secure):
        assert timeout > 0
        assert secure is False
        return self

    def answer(self, request):
        self.requests.append(decode(request) if request else None)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if answer is None:
            raise CollabCallError("a", "answer", TimeoutError("timed out"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def handed(self):
        return [r for r in self.requests if r is not None and "frame" in r]


GOOD = write_walk(Walk("a", b"reply"))


def caller(silence=1.0, timeout=60.0, **sites):
    return Caller(sites, timeout, silence)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The clock goes on by itself where code sleeps."""
    now = [100.0]
    monkeypatch.setattr(
        "pppml_nvflare.calls.time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    )
    return now


def test_a_frame_is_handed_over_once_however_long_the_answer_takes():
    a = Site(b"", b"", b"", b"", GOOD)
    assert caller(a=a).ask("a", b"frame") == Walk("a", b"reply")
    assert a.requests[0] is None  # nobody had heard of it before
    assert [r["frame"] for r in a.handed] == [b"frame"]
    assert len({r["ticket"] for r in a.requests if r is not None}) == 1
    assert len(a.requests) == 5


def test_a_site_that_does_not_answer_is_never_handed_the_frame():
    a = Site(None)
    loss = caller(a=a).ask("a", b"frame")
    assert loss == Loss("its NVFlare client does not answer", handed=False)
    assert a.handed == []
    missing = caller().ask("a", b"frame")
    assert isinstance(missing, Loss)
    assert not missing.handed


def test_a_site_that_was_just_heard_of_is_not_called_twice(no_waiting):
    a = Site(b"", GOOD)
    asking = caller(a=a)
    asking.ask("a", b"1")
    asking.ask("a", b"2")
    assert [r and r.get("frame") for r in a.requests] == [None, b"1", b"2"]
    asking.ask("a", b"3", certain=True)
    no_waiting[0] += 2
    asking.ask("a", b"4")
    assert [r and r.get("frame") for r in a.requests][3:] == [None, b"3", None, b"4"]


def test_what_was_handed_over_stays_so(no_waiting):
    silent = Site(b"", b"", None)
    loss = caller(silence=5.0, a=silent).ask("a", b"frame")
    assert isinstance(loss, Loss)
    assert loss.handed
    assert "no sign of life for 5 seconds" in loss.reason
    assert len(silent.handed) == 1
    # The call that carried the frame fails: it may have arrived.
    unsure = caller(silence=5.0, a=Site(b"", None)).ask("a", b"frame")
    assert isinstance(unsure, Loss)
    assert unsure.handed
    # Away for a while, then back: nothing is lost.
    assert caller(silence=5.0, a=Site(b"", b"", None, None, GOOD)).ask("a", b"frame") == Walk("a", b"reply")


def test_an_answer_that_never_comes_and_one_that_is_none(no_waiting):
    class Slow(Site):
        def answer(self, request):
            no_waiting[0] += 10
            return super().answer(request)

    loss = caller(timeout=60.0, silence=30.0, a=Slow(b"")).ask("a", b"frame")
    assert loss == Loss("no answer within 60 seconds", handed=True)
    for nonsense in (b"?", encode({"at": "a"}), "text"):
        wrong = caller(a=Site(b"", nonsense)).ask("a", b"frame")
        assert isinstance(wrong, Loss)
        assert wrong.handed
        assert "could not be read" in wrong.reason


def test_an_aborted_job_ends_the_run():
    with pytest.raises(RunFailed, match="aborted"):
        caller(a=Site(RunAborted("run is aborted"))).ask("a", b"frame")


# -- handing on -------------------------------------------------------------------------------------------------------------------------


class Passing(Site):
    """A site that adds its name and hands on, over a caller of its own."""

    def __init__(self, name, others):
        super().__init__(b"")
        self.name, self.others = name, others

    def answer(self, request):
        if not request:
            return b""
        asked = decode(request)
        self.requests.append(asked)
        got = decode_message(asked["frame"])
        reply = encode_message(Message(RUN, 1, 1, "reply", "ring", self.name, SERVER, {"by": [*got.body["by"], self.name]}))
        onward = Caller({n: s for n, s in self.others.items() if n != self.name}, 60.0, 1.0)
        return write_walk(replied(got, self.name, reply, asked["path"], onward, bridge=asked["bridge"]))


def ring(*dead):
    sites = {}
    for name in "abc":
        sites[name] = Site(None) if name in dead else Passing(name, sites)
    return sites


def test_a_relay_goes_from_site_to_site():
    sites = ring()
    found = Caller(sites, 60.0, 1.0).hand_on(SERVER, message(SERVER, "a", by=[]), ("a", "b", "c"), bridge=False)
    assert found.at == "c"
    assert decode_message(found.reply).body == {"by": ["a", "b", "c"]}
    assert [(s.sender, s.recipient) for s in found.steps] == [("server", "a"), ("a", "b"), ("b", "c")]
    for step, (sender, site) in zip(found.steps, (("server", "a"), ("a", "b"), ("b", "c")), strict=True):
        (got,) = sites[site].handed
        assert (decode_message(got["frame"]).sender, len(got["frame"])) == (sender, step.size)


@pytest.mark.parametrize(("dead", "by"), [("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"])])
def test_one_that_is_out_of_reach_is_bridged(dead, by):
    found = Caller(ring(dead), 60.0, 1.0).hand_on(SERVER, message(SERVER, "a", by=[]), ("a", "b", "c"), bridge=True)
    assert (found.bridged, decode_message(found.reply).body, found.at) == ((dead,), {"by": by}, by[-1])


def test_where_it_is_not_bridged_its_frame_comes_back():
    found = Caller(ring("b"), 60.0, 1.0).hand_on(SERVER, message(SERVER, "a", by=[]), ("a", "b", "c"), bridge=False)
    assert isinstance(found.reply, Loss)
    assert (found.at, found.reply.handed) == ("b", False)
    assert decode_message(found.unhanded).body == {"by": ["a"]}
    assert [(s.sender, s.recipient) for s in found.steps] == [("server", "a")]


def test_a_site_that_refuses_ends_it():
    sites = ring()
    refused = encode_message(Message(RUN, 1, 1, "refused", "ring", "b", SERVER, {"reason": "no"}))
    sites["b"] = Site(b"", write_walk(Walk("b", refused)))
    found = Caller(sites, 60.0, 1.0).hand_on(SERVER, message(SERVER, "a", by=[]), ("a", "b", "c"), bridge=True)
    assert (found.at, decode_message(found.reply).kind) == ("b", "refused")
    assert sites["c"].requests == []


# -- the desk ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(monkeypatch):
    """A site's desk and how it is called: without a home, so that whatever it takes in ends there."""
    monkeypatch.setitem(__import__("sys").modules, "torch", __import__("sys").modules.get("torch"))
    monkeypatch.delenv(HOME, raising=False)
    monkeypatch.delenv(HOMES, raising=False)
    made = Desk()

    def call(request, by=SERVER):
        set_call_context(SimpleNamespace(app=SimpleNamespace(name="a"), caller=by, clients=[]))
        try:
            return made.answer(request)
        finally:
            set_call_context(None)

    return call


def request(ticket=b"t" * 16, **more):
    return encode({"ticket": ticket, "timeout": 1.0, "silence": 2.0, "path": [], "bridge": False, **more})


def test_a_call_without_a_frame_is_answered_at_once(desk):
    assert desk(b"") == b""


@pytest.mark.parametrize("asked", [b"nonsense", encode([]), encode({"ticket": b""}), request(more=1), request(path=[1]), request(bridge=1)])
def test_what_is_no_request_is_told_and_never_raised(desk, asked):
    found = read_walk(desk(asked))
    assert isinstance(found.reply, Loss)
    assert found.reply.handed


def test_a_site_hands_on_only_what_is_its_own(desk):
    frame = encode_message(message("b", "a"))
    assert "c handed on what is not its own" in read_walk(desk(request(frame=frame), by="c")).reply.reason
    for taken in (desk(request(frame=frame), by="b"), desk(request(b"u" * 16, frame=frame))):  # the coordinator carries others' messages
        assert "PPPML_HOME does not name a home" in read_walk(taken).reply.reason


def test_a_ticket_belongs_to_one_frame(desk):
    frame = encode_message(message(SERVER, "a"))
    assert "this site holds nothing of that" in read_walk(desk(request())).reply.reason
    first = desk(request(frame=frame))
    assert desk(request()) == first
    assert desk(request(frame=frame)) == first

"""Asking a site, against a Collab that fails as told: what is handed over, how often, and what a failure means."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="NVFlare is not installed here")

from nvflare.collab.api.context import set_call_context
from nvflare.collab.api.exceptions import CollabCallError, RunAborted

from pppml_core.engines.parties import HOME, HOMES, acquaint
from pppml_core.engines.words import Words
from pppml_core.errors import RunFailed
from pppml_core.federation.audit import Audit, read_audit
from pppml_core.federation.identity import Identity, load_identity
from pppml_core.federation.letter import read_letter, written
from pppml_core.interfaces.engine import Loss, Step, Walk
from pppml_core.randomness import Secret
from pppml_core.wire.codec import decode, encode, encode_message
from pppml_core.wire.messages import SERVER, Message
from pppml_nvflare.calls import Caller
from pppml_nvflare.forms import read_walk, write_walk
from pppml_nvflare.lodging import Gone
from pppml_nvflare.site import Door
from pppml_nvflare.works import KEPT, PEERS, Works

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
        return [r for r in self.requests if r is not None and "letter" in r]


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
    assert [r["letter"] for r in a.handed] == [b"frame"]
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
    assert [r and r.get("letter") for r in a.requests] == [None, b"1", b"2"]
    asking.ask("a", b"3", certain=True)
    no_waiting[0] += 2
    asking.ask("a", b"4")
    assert [r and r.get("letter") for r in a.requests][3:] == [None, b"3", None, b"4"]


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


def test_a_site_cannot_say_that_it_was_never_handed_a_letter():
    """The bytes are at its machine; only who does not answer a call without them may be put out of a ring."""
    says = write_walk(Walk("a", Loss("busy", handed=False)))
    assert caller(a=Site(b"", says)).ask("a", b"letter") == Walk("a", Loss("busy", handed=True))
    next_one = write_walk(Walk("b", Loss("gone", handed=False), (Step("a", "b", 3, "0" * 64),)))
    assert caller(a=Site(b"", next_one)).ask("a", b"letter").reply == Loss("gone", handed=False)


def test_an_aborted_job_ends_the_run():
    with pytest.raises(RunFailed, match="aborted"):
        caller(a=Site(RunAborted("run is aborted"))).ask("a", b"frame")


def test_what_a_relay_came_to_is_asked_for_again_however_long_the_site_before_it_took(no_waiting):
    """The last site was heard of before the others of the ring trained: its silence begins with the call."""
    a = Site(b"", write_walk(Walk("a", b"")), None, GOOD)
    asks = caller(a=a)
    asks.ask("a", b"frame")
    no_waiting[0] += 1000.0
    assert asks._fetch("a", "0" * 64) == Walk("a", b"reply")
    assert [list(r) for r in a.requests[-2:]] == [["ended"], ["ended"]]


def test_a_site_that_stays_silent_has_not_given_what_a_relay_came_to(no_waiting):
    asks, began = caller(a=Site(None)), no_waiting[0]
    loss = asks._fetch("a", "0" * 64)
    assert isinstance(loss, Loss)
    assert loss.reason.startswith("no sign of life for 1 seconds")
    assert 1 < no_waiting[0] - began < 5


# -- the door ---------------------------------------------------------------------------------------------------------------------------


class AtWork:
    """The process of a site that is at work until it is told otherwise, and then answers: one letter after the other."""

    def __init__(self):
        self.free, self.got, self.gone, self._line = threading.Event(), [], "", threading.Lock()

    def hand(self, data):
        if free := self._line.acquire(blocking=False):
            self.got.append(data)
        return free

    def reply(self, patience=None):
        if not self.free.wait(30 if patience is None else patience):
            return None
        answer = b"reply to " + self.got[-1]
        self._line.release()
        if self.gone:
            raise Gone(self.gone)
        return answer

    def receive(self, data, skipped):
        with self._line:
            self.got.append(data)
            self.free.wait(30)
            return b"reply to " + data

    def close(self):
        self.free.set()


@pytest.fixture
def home(tmp_path, monkeypatch):
    acquaint(tmp_path, ("a", SERVER))
    monkeypatch.delenv(HOME, raising=False)
    monkeypatch.setenv(HOMES, str(tmp_path))
    return tmp_path / "a"


@pytest.fixture
def door(monkeypatch, home):
    """A site's door and how it is called."""
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch"))
    made = Door(timeout=1.0, silence=0.0)
    made._lodging, made._words = AtWork(), Words()

    def call(request, by=SERVER):
        set_call_context(SimpleNamespace(app=SimpleNamespace(name="a"), caller=by, clients=[]))
        try:
            return made.answer(request)
        finally:
            set_call_context(None)

    call.site, call.leave, call.door = made._lodging, made.leave, made
    yield call
    made.leave()


def request(ticket=b"t" * 16, **more):
    return encode({"ticket": ticket, **more})


def told(home):
    return [(line["kind"], line["reason"], line["count"]) for line in read_audit(home, load_identity(home).public)[0]]


def reason(answer):
    found = read_walk(answer)
    assert isinstance(found.reply, Loss)
    assert found.reply.handed
    return found.reply.reason


def test_a_call_without_a_letter_is_answered_at_once(door):
    assert door(b"") == b""


@pytest.mark.parametrize(
    "asked", [b"nonsense", encode([]), encode({}), request(more=1), request(letter="text"), request(1), request(ended="0" * 64)]
)
def test_what_is_no_request_is_told_and_never_raised(door, home, asked):
    assert reason(door(asked)) == "this is no request"
    assert told(home) == [("loss", "this is no request", 1)]


def letter(sender, kind="session", signer=None):
    frame = encode_message(Message(RUN, 1, 1, kind, "ring", sender, "a", {}))
    return written(Identity(Secret(b"k" * 32)), signer or sender, frame)


@pytest.mark.parametrize(
    "other",
    [
        letter("b"),  # not its own
        letter(SERVER),
        letter("c", signer="b"),
        letter("b", signer="c"),
        *(letter("c", kind=kind) for kind in ("open", "evaluate", "hello", "train", "reply", "join")),
        encode_message(message("c", "a")),  # no letter
        b"nonsense",
    ],
)
def test_another_site_hands_on_its_own_letters_and_says_nothing_else(door, other):
    assert reason(door(request(letter=other), by="c")).startswith("another site may hand on")
    assert door.site.got == []


def test_a_letter_of_another_site_and_any_of_the_coordinators_go_to_the_site(door):
    """Which verifies it."""
    door.site.free.set()
    own, scores = letter("c"), letter("c", kind="metrics")
    for ticket, by, data in ((b"1" * 16, SERVER, own), (b"2" * 16, SERVER, b"anything")):
        door(request(ticket, letter=data), by)
        while not (answer := door(request(ticket), by)):
            pass
        assert read_walk(answer) == Walk("a", b"reply to " + data)
    for ticket, data in ((b"3" * 16, own), (b"4" * 16, scores)):
        door(request(ticket, letter=data), "c")
        while not (answer := door(request(ticket), "c")):
            pass
        assert read_walk(answer) == Walk("a", b"")
        assert door.site.got[-1] == data


def test_what_a_relay_comes_to_is_the_coordinators_alone(door):
    """And is kept until the coordinator has gone on: the newest of each site that handed one in."""
    door.site.free.set()

    def hand_in(by, data):
        ticket = data[-16:]
        door(request(ticket, letter=data), by)
        while not door(request(ticket), by):
            pass
        return encode({"ended": hashlib.sha256(read_letter(data).frame).hexdigest()})

    first, of_b = hand_in("c", letter("c")), hand_in("b", letter("b"))
    for by in "bc":
        assert reason(door(first, by)).startswith("another site may hand on")
    assert read_walk(door(first)) == read_walk(door(first)) == Walk("a", b"reply to " + letter("c"))
    newer = hand_in("c", letter("c", kind="metrics"))
    assert "holds nothing of that" in reason(door(first))
    assert read_walk(door(newer)).reply == b"reply to " + letter("c", kind="metrics")
    assert read_walk(door(of_b)).reply == b"reply to " + letter("b")
    door(request(b"s" * 16, letter=b"open"))
    assert "holds nothing of that" in reason(door(newer))
    assert "holds nothing of that" in reason(door(of_b))


def test_another_site_waits_for_nothing_and_of_the_coordinators_calls_one(door):
    """So a peer holds no thread of NVFlare's, however often it asks, nor what the coordinator hands in."""
    door.door.silence = 6.0
    door(request(b"p" * 16, letter=letter("c")), by="c")
    began = time.monotonic()
    assert {door(request(b"p" * 16), by="c") for _ in range(30)} == {b""}
    coordinators = [threading.Thread(target=door, args=(request(b"s" * 16, letter=b"x"),), daemon=True)]
    coordinators[0].start()
    while not door.door._works_of(SERVER).find(b"s" * 16, SERVER):
        pass
    while not door.door._works_of(SERVER).find(b"s" * 16, SERVER)._waited_for.locked():
        pass
    assert {door(request(b"s" * 16)) for _ in range(30)} == {b""}
    assert time.monotonic() - began < 3
    assert coordinators[0].is_alive()
    door.site.free.set()
    coordinators[0].join(5)
    assert not coordinators[0].is_alive()


def test_a_peer_whose_work_does_not_end_does_not_hold_up_the_coordinators(door):
    """A relay that it hands in may go on to a site that is silent: that is waited for beside what the coordinator asks."""
    silent = threading.Event()
    door.site.hand = lambda data: False
    door.site.receive = lambda data, skipped: silent.wait(30) and b"" if data == letter("c") else b"reply"
    for i in range(2 * KEPT):
        door(request(b"p%15d" % i, letter=letter("c")), by="c")
    began = time.monotonic()
    door(request(b"s" * 16, letter=b"x"))
    while not (answer := door(request(b"s" * 16))):
        assert time.monotonic() - began < 5
    assert read_walk(answer).reply == b"reply"
    # Nor what another site hands in, which in a ring is the one before this.
    door(request(b"b" * 16, letter=letter("b")), by="b")
    while not (answer := door(request(b"b" * 16), by="b")):
        assert time.monotonic() - began < 5
    assert read_walk(answer) == Walk("a", b"")
    silent.set()


def test_a_peer_with_as_many_letters_as_it_likes_takes_no_other_sites_place(door):
    answers = [door(request(b"c%15d" % i, letter=letter("c")), by="c") for i in range(4)]
    assert [answer == b"" for answer in answers] == [True, True, False, False], "one at work, and one that waits"
    assert door(request(b"b" * 16, letter=letter("b")), by="b") == b""
    door.site.free.set()
    while not (answer := door(request(b"b" * 16), by="b")):
        pass
    for i in range(4, 40):  # nor pushes out what it has not fetched yet
        while not door(request(b"c%15d" % i, letter=letter("c")), by="c"):
            pass
    assert door(request(b"b" * 16), by="b") == answer == write_walk(Walk("a", b""))


def test_a_ticket_belongs_to_one_letter_and_one_caller(door):
    assert "holds nothing of that" in reason(door(request()))
    assert door(request(letter=b"1")) == b""
    assert door(request(letter=b"2")) == b""
    assert "holds nothing of that" in reason(door(request(), by="c"))
    assert door(request(letter=letter("c")), by="c") == b""  # its own, whatever the coordinator calls its letters
    door.site.free.set()
    while not (answer := door(request())):
        pass
    assert door(request(letter=b"3")) == answer
    while not door(request(), by="c"):
        pass
    assert sorted(door.site.got) == [b"1", letter("c")]


def test_a_site_at_work_holds_so_much_and_no_more(door, home):
    """Three hundred calls of a peer and of the coordinator: two threads, KEPT letters and a few; those are answered."""
    before = threading.active_count()
    answers = [door(request(b"p%15d" % i, letter=letter("c")), by="c") for i in range(150)]
    assert [i for i, answer in enumerate(answers) if answer == b""] == list(range(PEERS))
    answers = [door(request(b"s%15d" % i, letter=b"%d" % i)) for i in range(150)]
    assert [i for i, answer in enumerate(answers) if answer == b""] == list(range(KEPT))
    assert threading.active_count() == before + 2
    assert all(reason(answer).startswith("busy") for answer in answers[KEPT:])
    door.site.free.set()
    for i in range(KEPT):
        while not (answer := door(request(b"s%15d" % i))):
            pass
        assert read_walk(answer) == Walk("a", b"reply to %d" % i)
    assert len(told(home)) == 1  # of equal losses one is a line at once, the others are counted
    door.leave()
    assert [count for _, _, count in told(home)] == [1, 300 - KEPT - PEERS - 1]


def test_what_was_begun_is_finished_before_what_came_meanwhile():
    """The first, begun by who calls, is not done within its turn and holds the site: the second must wait for it, not it for the second."""
    works, order, lock = Works(KEPT), [], threading.Lock()

    class Task:
        def __init__(self, name):
            self.name = name

        def begin(self, patience):
            lock.acquire()
            second = threading.Thread(target=works.take, args=(b"2", SERVER, Task("second"), 0.1))
            second.start()
            second.join(10)
            time.sleep(0.1)
            return

        def finish(self):
            if self.name == "second":
                assert lock.acquire(timeout=10)
            order.append(self.name)
            lock.release()
            return b"done"

    first = works.take(b"1", SERVER, Task("first"), 0.1)
    assert first.done.wait(10)
    assert works.find(b"2", SERVER).done.wait(10)
    assert order == ["first", "second"]
    works.end()


def test_answers_are_not_kept_for_ever_and_peers_push_out_none_of_the_coordinators(door):
    door.site.free.set()
    door(request(b"s" * 16, letter=b"first"))
    while not (answer := door(request(b"s" * 16))):
        pass
    for i in range(3 * KEPT):
        while not door(request(b"p%15d" % i, letter=letter("c")), by="c"):
            pass
    assert door(request(b"s" * 16)) == answer
    assert "holds nothing" in reason(door(request(b"p%15d" % 0), by="c"))
    assert "holds nothing" not in door(request(b"p%15d" % (3 * KEPT - 1)), by="c").decode(errors="replace")


def test_a_loss_is_in_the_audit_log_before_it_leaves(door, home, monkeypatch):
    door.site.gone = "its process ended (exit code -9)"
    door.site.free.set()
    door(request(letter=b"x"))
    while not (answer := door(request())):
        pass
    assert reason(answer) == "its process ended (exit code -9)"
    (line,) = read_audit(home, load_identity(home).public)[0]
    assert (line["kind"], line["reason"], line["sha256"]) == ("loss", reason(answer), hashlib.sha256(answer).hexdigest())
    # And where it cannot be written, nobody is told what it was.
    monkeypatch.setattr(Audit, "note_words", lambda *given: (_ for _ in ()).throw(OSError(28, "no space left")))
    door.site.gone = "another"
    door(request(b"u" * 16, letter=b"x"))
    while not (answer := door(request(b"u" * 16))):
        pass
    assert reason(answer) == "this site cannot write its audit log"


def test_nvflares_process_never_reads_the_key(home, monkeypatch):
    """Another one writes the lines; where it cannot, nothing leaves."""
    monkeypatch.setattr("pppml_core.engines.words.load_identity", lambda home: pytest.fail("this process read the key"))
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch"))
    set_call_context(SimpleNamespace(app=SimpleNamespace(name="a"), caller=SERVER, clients=[]))
    try:
        answer = Door(1.0, 0.0).answer(b"nonsense")
        assert reason(answer) == "this is no request"
        (line,) = read_audit(home, load_identity(home).public)[0]
        assert (line["reason"], line["sha256"]) == ("this is no request", hashlib.sha256(answer).hexdigest())
        (home / "identity.key").rename(home / "kept")
        assert reason(Door(1.0, 0.0).answer(b"nonsense")) == "this site cannot write its audit log"
    finally:
        set_call_context(None)


def test_a_site_without_a_home_says_only_that_it_has_no_log(door, monkeypatch):
    monkeypatch.delenv(HOMES)
    assert reason(door(request())) == "this site cannot write its audit log"

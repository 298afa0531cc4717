"""Which node is which site: a node that lies, one that copies, one that comes back."""

from __future__ import annotations

import errno
import hashlib
import shutil
import socket
import threading
from multiprocessing.connection import Listener

import pytest
from flwr.app import Context, Error, Message, RecordDict

from pppml_core.engines.words import Words
from pppml_core.errors import RunFailed, WireError
from pppml_core.federation.audit import read_audit
from pppml_core.federation.identity import Identity, load_identity, load_roster, pin
from pppml_core.federation.resident import Resident
from pppml_core.randomness import Secret
from pppml_core.wire.codec import decode, encode
from pppml_flower import introduction
from pppml_flower.client import answer
from pppml_flower.grid import GridPost, pack, unpack
from pppml_flower.introduction import Directory, challenge_to, introduce
from pppml_flower.keeper import ADDRESS, UNKEPT, Unkept, answer_of, ask, kept
from pppml_flower.post import CHALLENGE, INTRODUCTION

RUN = bytes(range(16))


def _directory(there, grid, sites=("a", "b")):
    return Directory(GridPost(grid), RUN, sites, load_roster(there["server"]), load_identity(there["server"]), 0.001, 60.0)


def test_every_node_names_its_site(homes, grid_of):
    there = homes(("a", "b"))
    directory = _directory(there, grid_of(there))
    directory.look(5)
    assert directory.nodes == {"a": 101, "b": 102}
    assert not directory.strange


def test_a_home_names_itself_to_its_coordinator_alone(homes):
    """Whoever else asks, for whichever node, is told nothing; what was told is in the audit log."""
    there = homes(("a", "b"))
    own = challenge_to(7, RUN, bytes(32), load_identity(there["server"]))
    stranger = challenge_to(7, RUN, bytes(32), Identity(Secret(b"k" * 32)))
    another_site = challenge_to(7, RUN, bytes(32), load_identity(there["b"]))
    unsigned = encode({"run": RUN, "nonce": bytes(32)})
    within = Resident(there["a"]), Words()
    for asked, node in ((stranger, 7), (another_site, 7), (unsigned, 7), (own, 8), (b"nonsense", 7)):
        with pytest.raises(WireError):
            answer_of(there["a"], CHALLENGE, asked, node, *within)
    assert read_audit(there["a"], load_identity(there["a"]).public)[0] == []
    kind, data = answer_of(there["a"], CHALLENGE, own, 7, *within)
    assert (kind, decode(data)["site"]) == (INTRODUCTION, "a")
    (line,) = read_audit(there["a"], load_identity(there["a"]).public)[0]
    assert (line["kind"], line["bytes"], line["sha256"]) == ("introduction", len(data), hashlib.sha256(data).hexdigest())


def test_a_home_that_has_pinned_no_coordinator_names_itself_to_nobody(homes, tmp_path):
    from pppml_core.federation.home import init_home

    there = homes(("a",))
    init_home(tmp_path / "alone", "b")
    with pytest.raises(WireError, match="no identity is pinned for the coordinator"):
        introduce(tmp_path / "alone", challenge_to(7, RUN, bytes(32), load_identity(there["server"])), 7)


def test_a_second_keeper_of_a_home_is_refused_and_the_first_goes_on(homes):
    there = homes(("a",))
    with kept(there["a"]):
        address = (there["a"] / ADDRESS).read_text()
        with pytest.raises(RunFailed, match="another process of this site lives in its home"), kept(there["a"]):
            pytest.fail("it began")
        assert (there["a"] / ADDRESS).read_text() == address
        assert ask(there["a"], CHALLENGE, challenge_to(7, RUN, bytes(32), load_identity(there["server"])), 7) is not None
    with kept(there["a"]):
        assert (there["a"] / ADDRESS).exists()


def test_questions_without_number_are_counted(homes):
    there = homes(("a",))
    asked = challenge_to(7, RUN, bytes(32), load_identity(there["server"]))
    with kept(there["a"]):
        for _ in range(20):
            assert ask(there["a"], CHALLENGE, asked, 7)[0] == INTRODUCTION
        lines = read_audit(there["a"], load_identity(there["a"]).public)[0]
        assert [line["count"] for line in lines] == [1]
    lines = read_audit(there["a"], load_identity(there["a"]).public)[0]
    assert [line["count"] for line in lines] == [1, 19]


@pytest.mark.parametrize("left", ["its address", "its address and the door"])
def test_a_keeper_that_was_killed_leaves_a_home_that_answers_nobody(homes, tmp_path, left):
    """And writes nothing: a line for each message would fill the disk."""
    there = homes(("a",))
    (there["a"] / ADDRESS).write_text(str(tmp_path / "door"))
    if left == "its address and the door":
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(tmp_path / "door"))
    asked = challenge_to(101, RUN, bytes(32), load_identity(there["server"]))
    for _ in range(3):
        with pytest.raises(Unkept):
            ask(there["a"], CHALLENGE, asked, 101)
    reply = answer(_message(CHALLENGE, asked), Context(1, 101, {"home": str(there["a"])}, RecordDict(), {}, 0))
    assert reply.error.reason == UNKEPT
    assert read_audit(there["a"], load_identity(there["a"]).public)[0] == []


def _message(kind, data):
    message = Message(pack(kind, data), 101, "train.pppml")
    message.metadata.__dict__["_message_id"] = "a letter"
    return message


def test_a_node_that_claims_another_name_is_passed_over(homes, grid_of):
    there = homes(("a", "b"))
    grid = grid_of(there)

    def lie(letter: str, reply: Message) -> list[Message]:
        kind, data = unpack(reply.content)
        if kind == INTRODUCTION and (told := decode(data))["site"] == "b":
            reply.content = pack(INTRODUCTION, encode({**told, "site": "a"}))
        return [reply]

    grid.meddle = lie
    directory = _directory(there, grid)
    directory.look(0.05)
    assert directory.nodes == {"a": 101}
    assert directory.missing == ["b"]
    assert "does not fit its pinned identity" in directory.strange[102]


def test_an_answer_of_another_node_proves_nothing(homes, grid_of):
    """Node 102 is nobody of the run: it passes the question to a's home and its answer off as its own."""
    there = homes(("a", "c"))
    grid = grid_of({party: home for party, home in there.items() if party != "c"})
    first: list[Message] = []

    def copy(letter: str, reply: Message) -> list[Message]:
        first.append(reply)
        if len(first) > 1:
            reply.content = first[0].content
        return [reply]

    grid.homes[102], grid.meddle = there["c"], copy
    grid.online.add(102)
    directory = _directory(there, grid, ("a", "b"))
    with kept(there["c"]):
        directory.look(0.05)
    assert directory.nodes == {"a": 101}
    assert 102 in directory.strange


def test_a_stranger_with_a_home_of_its_own_is_passed_over(homes, grid_of, tmp_path):
    from pppml_core.federation.home import init_home

    there = homes(("a", "b"))
    init_home(tmp_path / "imposter", "b")
    pin(tmp_path / "imposter", "server", load_identity(there["server"]).public)
    grid = grid_of(there)
    grid.homes[102] = tmp_path / "imposter"
    directory = _directory(there, grid)
    with kept(tmp_path / "imposter"):
        directory.look(0.05)
    assert directory.nodes == {"a": 101}
    assert "does not fit" in directory.strange[102]


def test_two_nodes_with_one_home_stop_the_run(homes, grid_of, tmp_path):
    there = homes(("a", "b"))
    shutil.copytree(there["a"], tmp_path / "copy")
    grid = grid_of(there)
    grid.homes[102] = tmp_path / "copy"
    with kept(tmp_path / "copy"), pytest.raises(RunFailed, match="two nodes, 101 and 102, hold the identity of a"):
        _directory(there, grid).look(1)


def test_a_site_that_comes_back_with_another_node_is_found_again(homes, grid_of):
    there = homes(("a", "b"))
    grid = grid_of(there)
    directory = _directory(there, grid)
    directory.look(5)
    grid.online.discard(101)
    directory.look(0)
    assert directory.missing == ["a"]
    grid.homes[777] = there["a"]
    grid.online.add(777)
    directory.look(5)
    assert directory.nodes == {"a": 777, "b": 102}


def test_a_node_whose_connection_was_cut_is_asked_again(homes, grid_of):
    there = homes(("a", "b"))
    grid = grid_of(there)
    answers = []

    def cut(letter: str, reply: Message) -> list[Message]:
        answers.append(letter)
        return [Message(Error(2, "Node Unavailable"), reply_to=grid.asked[letter])] if len(answers) == 1 else [reply]

    grid.meddle = cut
    directory = _directory(there, grid)
    directory.look(0)
    assert "Node Unavailable" in directory.strange[101]
    directory.look(0)
    assert len(answers) == 2, "it is left alone for a while"
    directory._asked[101] -= introduction._AGAIN
    directory.look(5)
    assert directory.nodes == {"a": 101, "b": 102}
    assert not directory.strange


def test_a_node_that_stays_silent_is_asked_again_and_one_that_answered_is_not(homes, grid_of):
    there = homes(("a", "b"))
    grid = grid_of(there)
    asked: list[int] = []
    grid.takes = lambda node, kind, data: asked.append(node) is None
    grid.meddle = lambda letter, reply: [] if reply.metadata.src_node_id == 101 else [reply]
    directory = _directory(there, grid)
    directory.look(0)
    for node in directory._asked:
        directory._asked[node] -= introduction._SILENT
    directory.look(0)
    assert asked == [101, 102, 101]


@pytest.mark.parametrize("what", ["get_node_ids", "push_messages", "pull_messages"])
def test_a_superlink_that_fails_once_is_asked_again(homes, grid_of, what):
    there = homes(("a", "b"))
    grid = grid_of(there)
    before, tries = getattr(grid, what), []

    def failing(*given):
        tries.append(given)
        if len(tries) == 1:
            raise ConnectionError("500")
        return before(*given)

    setattr(grid, what, failing)
    directory = _directory(there, grid)
    directory.look(5)
    assert directory.nodes == {"a": 101, "b": 102}
    assert len(tries) > 1


def test_what_fails_until_the_end_is_told(homes, grid_of):
    there = homes(("a", "b"))
    grid = grid_of(there)

    def away():
        raise ConnectionError("no way there")

    grid.get_node_ids = away
    directory = _directory(there, grid)
    directory.look(0.05)
    assert directory.missing == ["a", "b"]
    assert directory.failed == "ConnectionError: no way there"


def test_an_answer_that_cannot_be_read_keeps_no_other_from_being_heard(homes, grid_of):
    there = homes(("a", "b"))
    grid = grid_of(there)
    before = grid.pull_messages

    def pull(ids):
        if grid.asked[ids[0]].metadata.dst_node_id == 101:
            raise AttributeError("metadata")
        return before(ids)

    grid.pull_messages = pull
    directory = _directory(there, grid)
    directory.look(0)
    assert directory.nodes == {"b": 102}
    assert "metadata" in directory.failed


def test_a_keeper_goes_on_where_a_caller_could_not_be_let_in(homes, monkeypatch):
    """No file is left to be opened, or no thread."""
    there = homes(("a",))
    accept, start, tries = Listener.accept, threading.Thread.start, []

    def accepting(listener):
        tries.append("accept")
        if len(tries) == 1:
            raise OSError(errno.EMFILE, "too many open files")
        return accept(listener)

    def starting(thread):
        if thread.name == "pppml-message":
            tries.append("start")
            if tries.count("start") == 1:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(Listener, "accept", accepting)
    monkeypatch.setattr(threading.Thread, "start", starting)
    asked = challenge_to(7, RUN, bytes(32), load_identity(there["server"]))
    with kept(there["a"]):
        with pytest.raises((OSError, EOFError)):
            ask(there["a"], CHALLENGE, asked, 7)
        assert ask(there["a"], CHALLENGE, asked, 7)[0] == INTRODUCTION
    assert tries.count("start") == 2


def test_a_node_that_went_without_an_answer_is_asked_again_when_it_is_back(homes, grid_of):
    there = homes(("a", "b"))
    grid = grid_of(there)
    grid.meddle = lambda letter, reply: []
    directory = _directory(there, grid)
    directory.look(0)
    grid.online.clear()
    directory.look(0)
    grid.online |= {101, 102}
    grid.meddle = lambda letter, reply: [reply]
    directory.look(5)
    assert directory.nodes == {"a": 101, "b": 102}

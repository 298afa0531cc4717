"""Frames and their answers: late ones, second ones, none, errors, something else."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from multiprocessing.connection import Listener
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from pppml_core.errors import WireError
from pppml_core.federation.audit import read_audit
from pppml_core.federation.identity import load_identity, load_roster
from pppml_core.federation.letter import written
from pppml_core.interfaces.engine import Loss
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER
from pppml_core.wire.messages import Message as Ours
from pppml_flower.grid import GridPost, pack, unpack
from pppml_flower.introduction import Directory, challenge_to
from pppml_flower.keeper import FAILED, kept
from pppml_flower.post import CHALLENGE, FRAME
from pppml_flower.transport import MARGIN, FlowerTransport

RUN = bytes(range(16))


class Signing:
    """Puts frames into the coordinator's letters."""

    def __init__(self, inner, server):
        self._inner, self._identity = inner, load_identity(server)

    def deliver(self, frames):
        return self._inner.deliver((site, written(self._identity, SERVER, frame)) for site, frame in frames)


@pytest.fixture
def linked(homes, grid_of):
    """A grid over two sites, and a transport that waits a tenth of a second."""
    there = homes(("a", "b"))
    grid = grid_of(there)
    post = GridPost(grid)
    directory = Directory(post, RUN, ("a", "b"), load_roster(there["server"]), load_identity(there["server"]), 0.001, 60.0)
    directory.look(5)
    return grid, Signing(FlowerTransport(post, directory, ("a", "b"), timeout=0.1, poll=0.01), there["server"]), there


def _frame(site: str, round: int = 0) -> bytes:
    return encode_message(Ours(RUN, round, 1, "hello", "hello", SERVER, site, {}))


def _deliver(transport, *frames):
    return dict(transport.deliver(frames))


def test_each_site_answers_its_own_frame(linked):
    _, transport, _ = linked
    replies = _deliver(transport, ("a", _frame("a")), ("b", _frame("b")))
    # Neither has joined a run: they say so, each in its own name.
    for site, reply in replies.items():
        message = decode_message(reply)
        assert (message.sender, message.kind) == (site, "failed")
        assert "has not joined" in message.body["reason"]


def test_a_node_that_is_gone_was_not_handed_its_frame(linked):
    grid, transport, _ = linked
    grid.online.discard(101)
    assert _deliver(transport, ("a", _frame("a")))["a"] == Loss("its node is not connected", handed=False)


def test_a_frame_that_the_superlink_does_not_take_was_not_handed_over(linked):
    grid, transport, _ = linked
    grid.takes = lambda node, kind, data: False
    assert _deliver(transport, ("a", _frame("a")))["a"] == Loss("the SuperLink did not take the request", handed=False)


def test_a_superlink_that_is_away_may_have_handed_it_over(linked):
    grid, transport, _ = linked

    def away(node: int, kind: str, data: bytes) -> bool:
        raise TimeoutError

    grid.takes = away
    assert _deliver(transport, ("a", _frame("a")))["a"] == Loss("the request could not be handed over: TimeoutError", handed=True)


def test_a_late_answer_is_nobodys(linked):
    grid, transport, _ = linked
    late: list[Message] = []
    grid.meddle = lambda letter, reply: late.append(reply) or []  # type: ignore[func-returns-value]
    began = time.monotonic()
    first = _deliver(transport, ("a", _frame("a", 1)))["a"]
    assert first == Loss("no answer within 0.1 seconds", handed=True)
    assert time.monotonic() - began < 2
    # It comes with the next answers: the next frame gets its own.
    grid.meddle = lambda letter, reply: [*late, reply]
    assert decode_message(_deliver(transport, ("a", _frame("a", 2)))["a"]).round == 2


def test_a_second_answer_is_passed_over(linked):
    grid, transport, _ = linked

    def twice(letter, reply):
        second = Message(pack(FRAME, b"another"), reply_to=grid.asked[letter])
        return [reply, second]

    grid.meddle = twice
    answers = list(transport.deliver([("a", _frame("a")), ("b", _frame("b"))]))
    assert sorted((site, decode_message(reply).sender) for site, reply in answers) == [("a", "a"), ("b", "b")]


def test_an_error_is_a_loss_of_a_frame_that_was_handed_over(linked):
    grid, transport, _ = linked
    sent = {}
    grid.meddle = lambda letter, reply: [Message(Error(2, "boom"), reply_to=sent[letter])]
    before = grid.push_messages

    def push(messages):
        messages = list(messages)
        ids = before(messages)
        sent.update(zip(ids, messages, strict=True))
        return ids

    grid.push_messages = push
    assert _deliver(transport, ("a", _frame("a")))["a"] == Loss("Flower reports: boom", handed=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RecordDict(), "could not be read"),
        (pack(CHALLENGE, b"who?"), "something else than a frame"),
        (RecordDict({"pppml": ConfigRecord({"frame": "x"})}), "could not be read"),
    ],
)
def test_something_else_is_a_loss(linked, content, reason):
    grid, transport, _ = linked

    def other(letter: str, reply: Message) -> list[Message]:
        reply.content = content
        return [reply]

    grid.meddle = other
    loss = _deliver(transport, ("a", _frame("a")))["a"]
    assert isinstance(loss, Loss)
    assert loss.handed
    assert reason in loss.reason


def _pulling(grid, what):
    """A grid of which a request for one answer fails, once it was handed out."""
    before = grid.pull_messages

    def pull(ids):
        assert len(ids) == 1
        messages = before(ids)
        if messages and not messages[0].has_error() and messages[0].metadata.src_node_id == 101:
            raise what
        return messages

    grid.pull_messages = pull


def test_an_answer_that_flower_cannot_read_takes_no_other_along(linked):
    """An item of a record that has no value passes Flower's check, and fails where it is read."""
    grid, transport, _ = linked
    _pulling(grid, AttributeError("NoneType"))
    replies = _deliver(transport, ("a", _frame("a")), ("b", _frame("b")))
    assert replies["a"] == Loss("Flower reports: Message Unavailable", handed=True)
    assert decode_message(replies["b"]).sender == "b"


def test_what_is_no_answer_keeps_nobody_from_answering(linked):
    """Flower hands out what is addressed to the coordinator with any answer, and its client breaks off where it is no message."""
    grid, transport, _ = linked
    before, tries = grid.pull_messages, []

    def pull(ids):
        tries.append(ids)
        if len(tries) == 1:
            raise AttributeError("metadata")
        return before(ids)

    grid.pull_messages = pull
    replies = _deliver(transport, ("a", _frame("a")), ("b", _frame("b")))
    assert {site: decode_message(reply).sender for site, reply in replies.items()} == {"a": "a", "b": "b"}


def test_a_message_outlives_its_deadline_by_a_minute(linked):
    """Answers that are there by then, and those that are looked for behind others."""
    grid, transport, _ = linked
    _deliver(transport, ("a", _frame("a")))
    questions, (frame,) = [message.metadata.ttl for message in grid.asked.values()][:2], list(grid.asked.values())[2:]
    assert questions == [60.0, 60.0]
    assert frame.metadata.ttl == pytest.approx(0.1 + MARGIN)


class Slow:
    """A post office whose looks take a while, at nodes that never answer."""

    def __init__(self, seconds):
        self.seconds, self.looks = seconds, []

    def push(self, node, kind, data, ttl):
        return "x"

    def pull(self, message_id, seconds):
        self.looks.append((time.monotonic(), seconds))
        time.sleep(self.seconds)


def test_a_superlink_is_left_alone_as_long_as_it_was_busy():
    post = Slow(0.2)
    directory = SimpleNamespace(nodes={"a": 1}, online={1}, look=lambda seconds: None)
    (lost,) = FlowerTransport(post, directory, ("a",), timeout=1.1, poll=0.001).deliver([("a", b"")])
    assert lost == ("a", Loss("no answer within 1.1 seconds", handed=True))
    assert len(post.looks) <= 4
    assert min(later - one for (one, _), (later, _) in pairwise(post.looks)) >= 0.4


def test_an_answer_that_has_begun_has_until_its_deadline_for_the_rest():
    """And those that are looked for behind it, after their own, a little."""
    post = Slow(0.0)
    directory = SimpleNamespace(nodes={"a": 1, "b": 2}, online={1, 2}, look=lambda seconds: None)
    answers = {"a": 0.05, "b": 0.0}
    post.push = lambda node, kind, data, ttl: "ab"[node - 1]
    rest = {}

    def pull(message_id, seconds):
        rest[message_id] = seconds
        time.sleep(answers[message_id])
        return (FRAME, b"answer")

    post.pull = pull
    for timeout, first, second in ((30.0, 30.0, 30.0), (0.01, 2.0, 2.0)):
        came = FlowerTransport(post, directory, ("a", "b"), timeout, poll=0.001).deliver([("a", b""), ("b", b"")])
        assert sorted(came) == [("a", b"answer"), ("b", b"answer")]
        assert rest == {"a": pytest.approx(first, abs=1), "b": pytest.approx(second, abs=1)}


def test_nodes_that_were_passed_over_are_in_the_remarks(linked):
    grid, _, there = linked
    directory = Directory(
        GridPost(grid), RUN, ("a",), {"a": load_roster(there["server"])["b"]}, load_identity(there["server"]), 0.001, 60.0
    )
    directory.look(0.05)
    (first, second) = FlowerTransport(GridPost(grid), directory, ("a",), timeout=0.1, poll=0.01).remarks()
    assert first.startswith("node 101 was passed over: ")
    assert "none of the sites" in second


def test_a_superlink_that_goes_in_between_loses_no_answer(linked):
    grid, transport, _ = linked
    before, tries = grid.pull_messages, []

    def pull(ids):
        tries.append(ids)
        if len(tries) == 2:
            raise ConnectionError
        return before(ids)

    grid.pull_messages = pull
    replies = _deliver(transport, ("a", _frame("a")), ("b", _frame("b")))
    assert {site: decode_message(reply).sender for site, reply in replies.items()} == {"a": "a", "b": "b"}


def test_no_node_answers_for_another(linked):
    """What an answer says it is an answer to is what its node says."""
    grid, transport, _ = linked

    def lie(letter, reply):
        if reply.metadata.src_node_id == 101:
            reply.metadata.__dict__["_reply_to_message_id"] = f"letter-{int(letter.rpartition('-')[2]) + 1}"
            reply.content = RecordDict()
        return [reply]

    grid.meddle = lie
    replies = _deliver(transport, ("a", _frame("a")), ("b", _frame("b")))
    assert replies["a"] == Loss("Flower reports: Message Unavailable", handed=True)
    assert decode_message(replies["b"]).sender == "b"


def test_what_leaves_in_place_of_an_answer_is_in_the_audit_log(linked, tmp_path):
    """Here that of a home whose keeper dies at work; nobody answers in its stead."""
    _, transport, there = linked
    with Listener(str(tmp_path / "door"), family="AF_UNIX") as dying:
        threading.Thread(target=lambda: dying.accept().close(), daemon=True).start()
        (there["a"] / "keeper").write_text(str(tmp_path / "door"))
        loss = _deliver(transport, ("a", _frame("a")))["a"]
    line = read_audit(there["a"], load_identity(there["a"]).public)[0][-1]
    assert (line["kind"], f"Flower reports: {line['reason']}") == ("loss", loss.reason)


def test_a_keeper_that_is_gone_is_not_stood_in_for(linked):
    """Its successor would hold another state of the attempt; the site is lost until its people start it again."""
    _, transport, there = linked
    (there["a"] / "keeper").write_text(str(there["a"] / "nobody"))
    assert isinstance(_deliver(transport, ("a", _frame("a")))["a"], Loss)


def _answered(home, content):
    from pppml_flower.client import answer

    message = Message(content, 101, "train.pppml")
    message.metadata.__dict__["_message_id"] = "x"
    return answer(message, Context(1, 101, {"home": str(home)}, RecordDict(), {}, 0))


def test_what_goes_wrong_at_a_site_stays_there(homes, caplog):
    there = homes(("a",))
    with kept(there["a"]):
        (there["a"] / "identity.key").rename(there["a"] / "elsewhere")
        asked = pack(CHALLENGE, challenge_to(101, RUN, bytes(32), load_identity(there["server"])))
        assert _answered(there["a"], asked).error.reason == FAILED
    assert str(there["a"]) in caplog.text


def test_the_handler_answers_nothing_but_frames_and_challenges(homes):
    """And of what is neither, as often as a SuperLink sends it, one line a minute is written."""
    there = homes(("a",))
    with kept(there["a"]):
        for _ in range(5):
            for content in (RecordDict(), pack("introduction", b""), pack(CHALLENGE, b"\xff" * 80)):
                assert _answered(there["a"], content).error.reason == FAILED
        (line,) = read_audit(there["a"], load_identity(there["a"]).public)[0]
    assert (line["kind"], line["reason"]) == ("loss", FAILED)


@pytest.mark.parametrize("kind", [FRAME, CHALLENGE])
def test_a_home_that_is_not_kept_answers_nobody(homes, kind):
    """Made anew in each process of a message a site could be two at once: two contributions under one attempt."""
    there = homes(("a",))
    own = load_identity(there["server"])
    data = challenge_to(101, RUN, bytes(32), own) if kind == CHALLENGE else written(own, SERVER, _frame("a"))
    before = {path: path.read_bytes() for path in there["a"].iterdir() if path.is_file()}
    answer = _answered(there["a"], pack(kind, data))
    assert "pppml site run" in answer.error.reason
    assert str(there["a"]) not in answer.error.reason
    assert {path: path.read_bytes() for path in there["a"].iterdir() if path.is_file()} == before


def test_many_bytes_survive_flowers_own_encoding():
    data = bytes(range(256)) * 50_000  # three pieces of an array
    content = pack(FRAME, data)
    array = content["pppml"]["frame"]
    pieces = dict(array.slice_array())
    assert len(pieces) > 1
    assert Array.inflate(array.deflate(), pieces).data == data
    assert unpack(content) == (FRAME, data)


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096], ids=len)
def test_few_bytes_are_one_object_and_survive_flowers_own_encoding(data):
    """Each object is a request of its own on each way of a message."""
    content = pack(FRAME, data)
    record = content["pppml"]
    objects = get_all_nested_objects(content)
    assert set(objects) == {content.object_id, record.object_id}
    assert ConfigRecord.inflate(record.deflate())["frame"] == data
    assert unpack(content) == (FRAME, data)


@pytest.mark.parametrize(
    "array",
    [
        Array("uint8", (4,), "pppml.bytes", b"abc"),
        Array("float32", (3,), "pppml.bytes", b"abc"),
        Array("uint8", (3,), "numpy.ndarray", b"abc"),
    ],
)
def test_an_array_of_another_form_is_refused(array):
    with pytest.raises(WireError):
        unpack(RecordDict({"pppml": ArrayRecord({"frame": array})}))
    with pytest.raises(WireError):
        unpack(RecordDict({"pppml": ArrayRecord({"x": Array("uint8", (1,), "pppml.bytes", b"a")})}))


@pytest.mark.parametrize("given", [{}, {"frame": "abc"}, {"frame": [b"abc"]}, {"x": b"abc"}, {"frame": b"a", "challenge": b"b"}])
def test_a_config_record_of_another_form_is_refused(given):
    with pytest.raises(WireError):
        unpack(RecordDict({"pppml": ConfigRecord(given)}))

"""The line between the coordinator and the app that lends it a grid."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import pytest

from pppml_core.engines.sockets import Line
from pppml_core.errors import RunFailed
from pppml_core.wire.codec import decode, encode
from pppml_flower.bridge import BridgePost
from pppml_flower.lend import _done
from pppml_flower.post import CHALLENGE, FRAME


class Post:
    """Remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def nodes(self):
        return [2**64 - 1, 7]

    def push(self, *given):
        self.asked.append(given)
        if given[0] == 13:
            raise TimeoutError("busy")
        return None if given[0] == 7 else "a letter"

    def pull(self, message_id, seconds):
        self.asked.append((message_id, seconds))
        return {"none": None, "lost": ("", b"why"), "some": (FRAME, bytes(5))}[message_id]


@contextmanager
def _lent(post, number=lambda given: given):
    near, far = (Line(_end) for _end in _pair())

    def lend():
        try:
            while True:
                given, _, asked = far.receive()
                far.send(number(given), b"", encode(_done(post, decode(asked))))
        except (OSError, EOFError):
            pass

    threading.Thread(target=lend, daemon=True).start()
    try:
        yield BridgePost(near), far
    finally:
        near.close()
        far.close()


def _pair():
    with socket.create_server(("127.0.0.1", 0)) as door:
        near = socket.create_connection(door.getsockname())
        return near, door.accept()[0]


def test_questions_and_answers_cross_the_line_as_they_are():
    post = Post()
    with _lent(post) as (bridge, _):
        assert bridge.nodes() == [2**64 - 1, 7]
        assert bridge.push(2**64 - 1, CHALLENGE, b"\0who?", 1.5) == "a letter"
        assert bridge.push(7, FRAME, b"", 2.5) is None
        assert [bridge.pull(name, 3.5) for name in ("none", "lost", "some")] == [None, ("", b"why"), (FRAME, bytes(5))]
    assert post.asked == [
        (2**64 - 1, CHALLENGE, b"\0who?", 1.5),
        (7, FRAME, b"", 2.5),
        *((name, 3.5) for name in ("none", "lost", "some")),
    ]


def test_an_error_at_the_other_end_is_one_here_and_the_line_goes_on():
    with _lent(Post()) as (bridge, _):
        with pytest.raises(ConnectionError, match="TimeoutError: busy"):
            bridge.push(13, FRAME, b"", 1.0)
        with pytest.raises(ConnectionError, match="KeyError"):
            bridge.pull("unknown", 1.0)
        assert bridge.pull("some", 1.0) == (FRAME, bytes(5))


def test_a_line_that_is_cut_ends_the_run():
    """It does not come back: its app has ended. Whoever asks again would wait for each site's deadline."""
    with _lent(Post()) as (bridge, far):
        far.close()
        for _ in range(2):
            with pytest.raises(RunFailed, match="has ended"):
                bridge.pull("some", 1.0)


def test_an_answer_to_another_question_ends_the_run():
    with _lent(Post(), number=lambda given: given + 1) as (bridge, _), pytest.raises(RunFailed, match="another question"):
        bridge.nodes()

"""Flower's own client of a SuperLink, which here is played: answers that are half there, or broken."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from flwr.app import Message
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.serverapp.grid import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid import http_grid

from pppml_flower.grid import GridPost, pack
from pppml_flower.post import FRAME

WHOLE = http_grid.pull_objects


class SuperLink:
    """It has one answer, of which objects may be missing."""

    def __init__(self, reply: Message, missing: bool = False) -> None:
        from flwr.common.serde import message_to_proto

        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.head, self.tree = message_to_proto(http_grid.remove_content_from_message(reply)), get_object_tree(reply)
        self.objects = {name: one.deflate() for name, one in get_all_nested_objects(reply).items()}
        self.missing, self.waits = missing, []

    def PullMessages(self, request):
        return PullAppMessagesResponse(messages_list=[self.head], message_object_trees=[self.tree])

    def PullObject(self, request):
        if self.missing:
            return PullObjectResponse(object_found=True, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=self.objects[request.object_id])

    def ConfirmMessageReceived(self, request):
        pass


def _over(link) -> Grid:
    grid = http_grid.HttpGrid(token="x")
    grid._client, grid._run = link, SimpleNamespace(run_id=1)
    return grid


@pytest.fixture
def reply():
    asked = Message(pack(FRAME, b"question"), 101, "train.pppml")
    asked.metadata.__dict__["_message_id"] = "letter"
    return Message(pack(FRAME, b"answer"), reply_to=asked)


def test_an_answer_that_is_whole_is_taken(reply):
    assert GridPost(_over(SuperLink(reply))).pull("letter", 0.0) == (FRAME, b"answer")


def test_the_rest_of_an_answer_is_not_waited_for_for_hours(reply):
    """All other sites wait meanwhile, and their answers are kept for a minute only."""
    began = time.monotonic()
    kind, reason = GridPost(_over(SuperLink(reply, missing=True))).pull("letter", 0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert not kind
    assert b"objects are unavailable" in reason
    assert http_grid.pull_objects is WHOLE, "what was put in its place is taken away again"


def test_what_is_no_answer_is_an_error_and_leaves_nothing_in_place(reply):
    link = SuperLink(reply)
    link.objects = dict.fromkeys(link.objects, b"ConfigRecord , 0\x00")
    with pytest.raises(Exception, match=r"."):
        GridPost(_over(link)).pull("letter", 5.0)
    assert http_grid.pull_objects is WHOLE

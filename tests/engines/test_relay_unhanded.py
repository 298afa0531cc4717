"""A relay that breaks says whether the site was surely never handed the message, and gives back what it would have got."""

from __future__ import annotations

import pytest

from pppml_core.engines.courier import Address, Courier
from pppml_core.interfaces.engine import Loss
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.manifest import Manifest, WireField
from pppml_core.wire.messages import SERVER, Message, Relay
from pppml_core.wire.transcript import Transcript

RUN = b"r" * 16
FIELDS = Manifest([WireField("add", "n", "int", (), 8, "in the clear", "a number")])


class Adding:
    """Each site adds one, except those that are lost."""

    def __init__(self, lost):
        self.lost = lost

    def deliver(self, frames):
        for site, frame in frames:
            message = decode_message(frame)
            reply = Message(RUN, 1, 1, "reply", message.stage, site, SERVER, {"n": message.body["n"] + 1})
            yield site, self.lost.get(site) or encode_message(reply)


def relay(tmp_path, path, lost, bridge=False):
    with Transcript(tmp_path) as transcript:
        courier = Courier(Adding(lost), "p2p", transcript)
        return courier.perform(Relay("add", path, {"n": 0}, bridge=bridge), Address(RUN, 1, 1), FIELDS)


NEVER, PERHAPS = Loss("no route", handed=False), Loss("no answer", handed=True)


@pytest.mark.parametrize(("site", "last"), [("a", {"n": 0}), ("b", {"n": 1}), ("c", {"n": 2})])
def test_what_the_unreached_site_would_have_got(tmp_path, site, last):
    outcome = relay(tmp_path, ("a", "b", "c"), {site: NEVER})
    assert (outcome.body, outcome.unhanded) == (None, last)
    assert outcome.lost == {site: "no route"}
    assert len(outcome.visited) == last["n"]


@pytest.mark.parametrize("answer", [PERHAPS, b"not a frame"])
def test_a_site_that_may_have_had_the_message(tmp_path, answer):
    outcome = relay(tmp_path, ("a", "b", "c"), {"b": answer})
    assert (outcome.body, outcome.unhanded, tuple(outcome.lost)) == (None, None, ("b",))


def test_an_unbroken_or_bridged_chain_holds_nothing_back(tmp_path):
    assert relay(tmp_path, ("a", "b"), {}).unhanded is None
    outcome = relay(tmp_path, ("a", "b", "c"), {"b": NEVER}, bridge=True)
    assert (outcome.body, outcome.unhanded, outcome.bridged) == ({"n": 2}, None, ("b",))

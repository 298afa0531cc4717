"""A relay that sites hand on among themselves: what the coordinator records and believes of it, against one that it carries itself."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from pppml_core.engines.courier import Address, Courier
from pppml_core.errors import RunFailed
from pppml_core.interfaces.engine import Loss, Step, Walk
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.manifest import Manifest, WireField
from pppml_core.wire.messages import SERVER, Message, Relay
from pppml_core.wire.transcript import Transcript, read_transcript

RUN = b"r" * 16
FIELDS = Manifest([WireField("add", "n", "int", (), 8, "in the clear", "a number")])
PATH = ("a", "b", "c")
NEVER, PERHAPS = Loss("no route", handed=False), Loss("no answer", handed=True)


class Carried:
    """Each site adds one, except those that are lost; the coordinator carries every hop."""

    def __init__(self, lost):
        self.lost = lost

    def deliver(self, frames):
        for site, frame in frames:
            message = decode_message(frame)
            reply = Message(RUN, 1, 1, "reply", message.stage, site, SERVER, {"n": message.body["n"] + 1})
            yield site, self.lost.get(site) or encode_message(reply)


class Walked(Carried):
    """The same sites, which hand on among themselves: a direct reading of what ``Relay`` says. ``spoil`` changes what they tell."""

    def __init__(self, lost, spoil=lambda walk: walk):
        super().__init__(lost)
        self.spoil = spoil

    def walk(self, path, frame, bridge):
        message, sender, body, last = decode_message(frame), SERVER, decode_message(frame).body, None
        steps, bridged = [], []
        for site in path:
            own = encode_message(replace(message, sender=sender, recipient=site, body=body))
            loss = self.lost.get(site)
            if loss is not None and not loss.handed:
                if bridge:
                    bridged.append(site)
                    continue
                return self.spoil(Walk(site, loss, tuple(steps), tuple(bridged), own))
            steps.append(Step(sender, site, len(own), hashlib.sha256(own).hexdigest()))
            if loss is not None:
                return self.spoil(Walk(site, loss, tuple(steps), tuple(bridged)))
            sender, body = site, {"n": body["n"] + 1}
            last = encode_message(Message(RUN, 1, 1, "reply", message.stage, site, SERVER, body))
        at = sender if last is not None else path[-1]
        return self.spoil(Walk(at, last if last is not None else Loss("nobody is left", handed=False), tuple(steps), tuple(bridged)))


def relay(folder, transport, bridge=False, payloads=False):
    folder.mkdir()
    events = []
    with Transcript(folder, payloads) as transcript:
        courier = Courier(transport, "p2p", transcript, events.append)
        outcome = courier.perform(Relay("add", PATH, {"n": 0}, bridge=bridge), Address(RUN, 1, 1), FIELDS)
    hops = [(h.sender, h.recipient, h.carrier, h.size, h.sha256) for h in read_transcript(folder)]
    told = [{k: v for k, v in e.items() if k not in ("seconds", "sent", "received", "bytes", "reason")} for e in events]
    return outcome, hops, told


@pytest.mark.parametrize("bridge", [False, True])
@pytest.mark.parametrize("lost", [{}, *({site: loss} for site in PATH for loss in (NEVER, PERHAPS)), {"a": NEVER, "b": NEVER}])
def test_as_one_that_the_coordinator_carries(tmp_path, lost, bridge):
    ours, hops, told = relay(tmp_path / "walked", Walked(lost), bridge)
    theirs, carried, events = relay(tmp_path / "carried", Carried(lost), bridge)
    assert ours == theirs
    # What was never handed over is a hop only where the coordinator wrote it down before it tried.
    assert hops == [hop for hop in carried if hop[1] not in lost or lost[hop[1]].handed]
    assert told == events


def test_nobody_is_reached(tmp_path):
    outcome, hops, _ = relay(tmp_path / "w", Walked(dict.fromkeys(PATH, NEVER)), bridge=True)
    assert (outcome.body, outcome.visited, outcome.bridged, outcome.lost) == (None, (), PATH, {})
    assert hops == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: replace(w, steps=w.steps[:1]),
        lambda w: replace(w, steps=(w.steps[1], w.steps[0], w.steps[2])),
        lambda w: replace(w, steps=(*w.steps, Step("c", "d", 1, "0" * 64))),
        lambda w: replace(w, bridged=("b",)),
        lambda w: replace(w, bridged=("x",)),
        lambda w: replace(w, at="b"),
        lambda w: replace(w, steps=(replace(w.steps[0], sender="c"), *w.steps[1:])),
        lambda w: replace(w, reply=Loss("not me", handed=False), unhanded=b""),
    ],
)
def test_what_does_not_fit_is_not_believed(tmp_path, spoil):
    outcome, _, told = relay(tmp_path / "w", Walked({}, spoil))
    assert outcome.body is None
    assert outcome.unhanded is None
    assert list(outcome.lost) == ["a"]
    assert [e["event"] for e in told].count("site-lost") == 1


@pytest.mark.parametrize("unhanded", [b"", b"not a frame"])
def test_a_frame_that_cannot_be_read_is_not_given_back(tmp_path, unhanded):
    outcome, _, _ = relay(tmp_path / "w", Walked({"b": NEVER}, lambda w: replace(w, unhanded=unhanded)))
    assert (outcome.lost, outcome.unhanded) == ({"b": "no route"}, None)


def test_a_site_that_does_not_hand_on(tmp_path):
    def early(walk):
        reply = Message(RUN, 1, 1, "reply", "add", "b", SERVER, {"n": 2})
        return replace(walk, at="b", reply=encode_message(reply), steps=walk.steps[:2])

    outcome, _, _ = relay(tmp_path / "w", Walked({}, early))
    assert (outcome.body, outcome.visited, outcome.lost) == (None, ("a",), {"b": "it did not hand the relay on"})


def test_a_reply_that_the_manifest_does_not_declare(tmp_path):
    def more(walk):
        return replace(walk, reply=encode_message(Message(RUN, 1, 1, "reply", "add", "c", SERVER, {"n": 3, "more": 1})))

    outcome, _, _ = relay(tmp_path / "w", Walked({}, more))
    assert outcome.body is None
    assert "not what the manifest declares" in outcome.lost["c"]


def test_payloads_are_carried(tmp_path):
    _, hops, _ = relay(tmp_path / "w", Walked({}), payloads=True)
    assert [(h[0], h[1], h[2]) for h in hops if h[2]] == [
        ("a", "server", ("server",)),
        ("server", "b", ("server",)),
        ("b", "server", ("server",)),
        ("server", "c", ("server",)),
    ]
    with Transcript(tmp_path / "other", True) as transcript, pytest.raises(RunFailed, match="was not here to be kept"):
        transcript.append_told(Message(RUN, 1, 1, "session", "add", "a", "b"), 1, "0" * 64)

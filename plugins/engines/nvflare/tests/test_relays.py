"""Relays that sites hand on among themselves, through the doors of sites in this process: how they go, and what goes back through whom."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("nvflare", reason="NVFlare is not installed here")

from nvflare.collab.api.context import get_call_context, set_call_context
from nvflare.collab.api.exceptions import CollabCallError

from pppml_core.api import Experiment
from pppml_core.engines.parties import HOME, HOMES, acquaint
from pppml_core.engines.words import Words
from pppml_core.federation.home import policy_template
from pppml_core.federation.identity import Identity
from pppml_core.federation.letter import read_letter, written
from pppml_core.federation.resident import Resident
from pppml_core.interfaces.engine import Loss
from pppml_core.randomness import Secret
from pppml_core.wire.codec import decode, decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message
from pppml_core.wire.transcript import read_transcript
from pppml_nvflare import conducting
from pppml_nvflare.calls import Caller
from pppml_nvflare.forms import read_walk, write_walk
from pppml_nvflare.server import CallTransport
from pppml_nvflare.site import Door

RUN = b"r" * 16
BACKEND = SimpleNamespace(cell=SimpleNamespace(core_cell=SimpleNamespace(supports_secure_messages=lambda: False)))


class Living:
    """What lives behind a door, in this process: ``receive`` of a site."""

    def __init__(self, receive):
        self.receive = receive

    def hand(self, data):
        return False

    def close(self):
        """Nothing is held."""


@dataclass
class Federation:
    """Doors, and how each party calls them.

    ``answers`` are all that one party was answered by another; ``spoil`` changes what a site says to another one or to the coordinator;
    calls to the ``dead`` fail.
    """

    receive: dict
    dead: str = ""
    spoil: object = lambda site, caller, answer: answer
    answers: list = field(default_factory=list)
    letters: list = field(default_factory=list)

    def __post_init__(self):
        self.doors = {name: Door(20.0, 5.0) for name in self.receive}
        for name, door in self.doors.items():
            door._lodging, door._words = Living(self.receive[name]), Words()

    def caller(self, party=SERVER):
        return Caller({name: Proxy(self, name, party) for name in self.doors if name != party}, 20.0, 5.0)

    def seen_by(self, party):
        return [answer for asker, _, answer in self.answers if asker == party and answer]


@dataclass
class Proxy:
    """A door as one party reaches it."""

    federation: Federation
    name: str
    by: str
    backend = BACKEND

    def __call__(self, timeout, secure):
        return self

    def answer(self, request):
        if self.name in self.federation.dead:
            raise CollabCallError(self.name, "answer", TimeoutError("timed out"))
        if request and "letter" in (asked := decode(request)):
            self.federation.letters.append((self.by, self.name, read_letter(asked["letter"])))
        before = get_call_context()
        clients = [Proxy(self.federation, name, self.name) for name in self.federation.doors]
        set_call_context(SimpleNamespace(app=SimpleNamespace(name=self.name), caller=self.by, clients=clients))
        try:
            answer = self.federation.doors[self.name].answer(request)
        finally:
            set_call_context(before)
        if answer:
            answer = self.federation.spoil(self.name, self.by, answer)
        self.federation.answers.append((self.by, self.name, answer))
        return answer


@pytest.fixture(autouse=True)
def homes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch"))
    monkeypatch.delenv(HOME, raising=False)
    monkeypatch.setenv(HOMES, str(tmp_path / "homes"))
    acquaint(tmp_path / "homes", (*"abc", SERVER))
    return tmp_path / "homes"


# -- sites that add their name -------------------------------------------------------------------------------------------------------------


def adding(name):
    """Adds its name, and hands on as a resident does."""
    identity = Identity(Secret(b"k" * 32))

    def receive(data, skipped):
        letter = read_letter(data)
        got, rest = decode_message(letter.frame), letter.path[skipped:]
        by = [*got.body["by"], name]
        if not rest:
            return encode_message(Message(RUN, 1, 1, "reply", "ring", name, SERVER, {"by": by}))
        onward = encode_message(Message(RUN, 1, 1, "session", "ring", name, rest[0], {"by": by}))
        return written(identity, name, onward, rest[1:], bridge=letter.bridge)

    return receive


def ring(dead="", **more):
    return Federation({name: adding(name) for name in "abc"}, dead, **more)


def walk(federation, bridge=False):
    """What the coordinator's end does with the first letter of a relay."""
    frame = encode_message(Message(RUN, 1, 1, "session", "ring", SERVER, "a", {"by": []}))
    return federation.caller().walk("a", written(Identity(Secret(b"s" * 32)), SERVER, frame, ("b", "c"), bridge=bridge))


def bare(answer):
    """Whether an answer says how a relay went and no more."""
    found = read_walk(answer)
    return found.unhanded is None and (isinstance(found.reply, Loss) or found.reply == b"")


def test_a_relay_goes_from_site_to_site():
    federation = ring()
    found = walk(federation)
    assert found.at == "c"
    assert decode_message(found.reply).body == {"by": ["a", "b", "c"]}
    assert [(s.sender, s.recipient) for s in found.steps] == [("server", "a"), ("a", "b"), ("b", "c")]
    for step, (by, site, letter) in zip(found.steps, federation.letters, strict=True):
        assert (step.sender, step.recipient) == (by, site)
        assert (letter.signer, decode_message(letter.frame).sender) == (by, by)
        assert (step.size, step.sha256) == (len(letter.frame), hashlib.sha256(letter.frame).hexdigest())


def test_nothing_goes_back_through_a_site_but_how_it_went():
    federation = ring()
    walk(federation)
    assert federation.seen_by("a")
    assert federation.seen_by("b")
    assert all(bare(answer) for party in "abc" for answer in federation.seen_by(party))
    assert [read_walk(answer).reply for asker, site, answer in federation.answers if (asker, site) == (SERVER, "c") and answer] != [b""]


@pytest.mark.parametrize(("dead", "by"), [("bc", ["a"]), ("b", ["a", "c"]), ("c", ["a", "b"])])
def test_one_that_is_out_of_reach_is_bridged(dead, by):
    found = walk(ring(dead), bridge=True)
    assert (found.bridged, decode_message(found.reply).body, found.at) == (tuple(dead), {"by": by}, by[-1])


@pytest.mark.parametrize("bridge", [False, True])
def test_a_first_one_that_is_out_of_reach_is_told(bridge):
    """Another letter, for the next of the path, is the coordinator's to sign."""
    found = walk(ring("a"), bridge)
    assert (found.at, found.steps, found.reply.handed, found.bridged) == ("a", (), False, ())


@pytest.mark.parametrize(("dead", "by"), [("b", ["a"]), ("c", ["a", "b"])])
def test_where_it_is_not_bridged_its_frame_comes_back(dead, by):
    """To the coordinator, past the sites before."""
    federation = ring(dead)
    found = walk(federation)
    assert isinstance(found.reply, Loss)
    assert (found.at, found.reply.handed) == (dead, False)
    assert decode_message(found.unhanded).body == {"by": by}
    assert [s.recipient for s in found.steps] == by
    assert all(bare(answer) for party in "abc" for answer in federation.seen_by(party))


@pytest.mark.parametrize(("at", "kind"), [("b", "refused"), ("c", "failed")])
def test_a_site_that_refuses_ends_it(at, kind):
    federation = ring()
    refused = encode_message(Message(RUN, 1, 1, kind, "ring", at, SERVER, {"reason": "no"}))
    federation.doors[at]._lodging.receive = lambda data, skipped: refused
    found = walk(federation, bridge=True)
    assert (found.at, found.reply, found.steps[-1].recipient) == (at, refused, at)
    assert all(bare(answer) for party in "abc" for answer in federation.seen_by(party))


OTHER = encode_message(Message(RUN, 1, 1, "reply", "ring", "c", SERVER, {"by": ["nobody"]}))


@pytest.mark.parametrize("liar", ["a", "b"])
def test_a_site_before_puts_no_other_reply_in_its_place(liar):
    def spoil(site, caller, answer):
        found = read_walk(answer)
        return write_walk(replace(found, reply=OTHER)) if site == liar and len(found.steps) else answer

    assert decode_message(walk(ring(spoil=spoil)).reply).body == {"by": ["a", "b", "c"]}


@pytest.mark.parametrize("liar", ["a", "b"])
def test_a_frame_that_the_last_site_did_not_get_is_not_believed(liar):
    """The last step a relay is said to have taken is confirmed by who got it, or there is no reply."""

    def spoil(site, caller, answer):
        found = read_walk(answer)
        steps = (*found.steps[:-1], replace(found.steps[-1], sha256="0" * 64)) if found.steps else ()
        return write_walk(replace(found, steps=steps)) if site == liar and steps else answer

    found = walk(ring(spoil=spoil))
    assert isinstance(found.reply, Loss)
    assert found.reply.handed


def test_an_end_that_is_no_site_or_another_ones_is_a_loss():
    for recipient, at in (("nobody", "nobody"), ("b", "b")):

        def spoil(site, caller, answer, recipient=recipient, at=at):
            found = read_walk(answer)
            if site != "a" or not found.steps:
                return answer
            return write_walk(replace(found, at=at, steps=(*found.steps[:-1], replace(found.steps[-1], recipient=recipient))))

        assert isinstance(walk(ring(spoil=spoil)).reply, Loss)


# -- a run ---------------------------------------------------------------------------------------------------------------------------------

SITES = ("site_1", "site_2", "site_3")
MISSING = [name for name in ("pppml_cyclic_he", "pppml_he_tenseal", "tenseal") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}")
def test_a_ring_of_residents_sees_nothing_of_those_behind(tmp_path, homes):
    """Where hops are not sealed, whoever has the ring's key reads what passes: so nothing may pass but the hops themselves."""
    sections = {
        "task": {"use": "tiny", "sites": 3, "examples": 12},
        "training": {"steps": 1},
        "aggregator": {"use": "cyclic-he", "backend": {"use": "tenseal", "scheme": "bfv"}},
        "run": {"rounds": 1, "metrics": "sum", "seed": 5},
    }
    acquaint(homes, (*SITES, SERVER))
    policy = {**yaml.safe_load(policy_template(careful=True)), "max_colluders": 0}
    for site in SITES:
        (homes / site / "policy.yaml").write_text(yaml.safe_dump(policy))
    federation = Federation({site: Resident(homes / site).receive for site in SITES})
    with conducting.inside(CallTransport(federation.caller(), 3), homes):
        config = {**sections, "engine": {"use": "nvflare", "topology": "p2p"}}
        ours = Experiment(config).run(tmp_path / "ours", reporters=False, report=False)
    assert ours.result["survivors"] == {"1": list(SITES)}
    hops = [(by, to, letter) for by, to, letter in federation.letters if SERVER not in (by, to)]
    assert {decode_message(letter.frame).kind for _, _, letter in hops} == {"session", "metrics"}
    told = {hop.sha256: (hop.sender, hop.recipient) for hop in read_transcript(ours.folder) if SERVER not in (hop.sender, hop.recipient)}
    assert told == {hashlib.sha256(letter.frame).hexdigest(): (by, to) for by, to, letter in hops}
    assert all(bare(answer) for site in SITES for answer in federation.seen_by(site))
    assert any(federation.seen_by(site) for site in SITES)

"""Who may ask a site that lives by itself: its pinned coordinator, by signature; another site of the run for the hop of a relay alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pppml_core.api import Experiment
from pppml_core.discovery import from_objects
from pppml_core.engines.remote import Signed, SignedWalks, invite
from pppml_core.errors import PluginError, RunFailed, WireError
from pppml_core.federation import resident as resident_module
from pppml_core.federation.audit import Strangers
from pppml_core.federation.identity import load_roster, new_identity
from pppml_core.federation.invitation import JOIN
from pppml_core.federation.letter import letter_in, read_letter, written
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.registry import Registry
from pppml_core.testing.desk import RUN, Desk
from pppml_core.testing.insecure import InsecureRingSession
from pppml_core.testing.insecure_plugin import pppml_aggregators
from pppml_core.testing.residents import ENGINE
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message

SITES = ("site_1", "site_2", "site_3")
REGISTRY = Registry.only(*from_objects([ENGINE, *(("aggregator", one) for one in pppml_aggregators())]))


class At(Desk):
    """With the smallest aggregators, and sites without other rules."""

    def __init__(self, folder: Path, aggregator: str, rules: str) -> None:
        run = {"rounds": 1, "metrics": "none", "seed": 5}
        sections = {"task": "tiny", "aggregator": aggregator, "training": {"steps": 1}, "run": run}
        super().__init__(folder, sections, rules, careful=False, registry=REGISTRY)

    def hand(self, site: str, data: bytes, skipped: int = 0) -> bytes:
        return self.residents[site].receive(data, skipped)

    def begin(self, site: str) -> Message:
        assert self.invite(site).body == {"joined": True}
        return self.open(site)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., At]:
    monkeypatch.setattr(resident_module.Registry, "discover", classmethod(lambda cls: REGISTRY))
    return lambda aggregator="plain", rules="": At(tmp_path, aggregator, rules)


def turned_away(reply: Message) -> bool:
    return reply.kind == "refused" and "its pinned coordinator signed" in reply.body["reason"]


# -- who is heard -------------------------------------------------------------------------------------------------------------------------


def test_only_the_pinned_coordinators_signature_is_heard(desk: Callable[..., At], tmp_path: Path) -> None:
    at = desk()
    assert at.begin("site_1").body == {"needs_weights": False}
    lines = len(at.logged("site_1"))
    plain = encode_message(Message(RUN, 1, 1, "session", "contribute", SERVER, "site_1", {}))
    assert turned_away(decode_message(at.hand("site_1", plain))), "no signature"
    stranger = new_identity(tmp_path / "stranger")
    assert turned_away(at.ask("site_1", "session", "contribute", {}, key=stranger)), "a key that nobody pinned"
    assert turned_away(at.ask("site_1", "session", "contribute", {}, signer="site_2")), "a site in the coordinator's name"
    assert turned_away(at.ask("site_1", "session", "contribute", {}, key=stranger, signer="somebody"))
    letter = read_letter(written(at.key(SERVER), SERVER, plain))
    other = encode_message(Message(RUN, 1, 1, "hello", "hello", SERVER, "site_1", {}))
    assert turned_away(decode_message(at.hand("site_1", type(letter)(SERVER, other, (), False, letter.signature).to_bytes()))), "moved"
    assert turned_away(decode_message(at.hand("site_1", type(letter)(SERVER, plain, ("site_2",), False, letter.signature).to_bytes())))
    assert len(at.logged("site_1")) == lines + 1, "one line for all of them"
    reply = at.ask("site_1", "session", "contribute", {})
    assert (reply.kind, list(reply.body)) == ("reply", ["values"]), "and nothing of it kept the coordinator out"


@pytest.mark.parametrize(
    ("kind", "stage", "round"),
    [
        ("open", "open", 1),
        ("session", "contribute", 1),
        ("evaluate", "evaluate", 1),
        ("hello", "hello", 0),
        (JOIN, JOIN, 0),
        ("train", "train", 1),
    ],
)
def test_a_site_of_the_run_may_ask_for_nothing_but_hops(desk: Callable[..., At], kind: str, stage: str, round: int) -> None:
    at = desk()
    at.begin("site_1")
    reply = at.ask("site_1", kind, stage, {}, round, sender="site_2", signer="site_2")
    assert reply.kind == "failed"
    assert "site_2 to ask" in reply.body["reason"] or "only the coordinator invites" in reply.body["reason"], reply.body
    assert at.ask("site_1", "session", "contribute", {}).kind == "reply", "the attempt stayed open"


def test_a_letter_for_another_site_is_not_answered(desk: Callable[..., At]) -> None:
    at = desk()
    at.begin("site_1")
    frame = encode_message(Message(RUN, 1, 1, "session", "contribute", SERVER, "site_2", {}))
    reply = decode_message(at.hand("site_1", written(at.key(SERVER), SERVER, frame)))
    assert (reply.kind, "another" in reply.body["reason"]) == ("failed", True)


# -- handing on ---------------------------------------------------------------------------------------------------------------------------


def relay(at: At, path: tuple[str, ...], skipped: int = 0, *, bridge: bool = False) -> bytes:
    frame = encode_message(Message(RUN, 1, 1, "session", "ring", SERVER, "site_1", {}))
    return at.hand("site_1", written(at.key(SERVER), SERVER, frame, path, bridge=bridge), skipped)


def test_a_relay_goes_from_site_to_site_and_the_log_names_the_frame_that_left(desk: Callable[..., At]) -> None:
    at = desk("insecure-ring")
    for site in SITES:
        at.begin(site)
    letter = letter_in(relay(at, ("site_2", "site_3")))
    assert letter is not None
    assert (letter.signer, letter.path) == ("site_1", ("site_3",))
    line = at.logged("site_1")[-1]
    assert (line["to"], line["kind"], line["bytes"]) == ("site_2", "session", len(letter.frame))
    assert line["sha256"] == hashlib.sha256(letter.frame).hexdigest()
    further = letter_in(at.hand("site_2", letter.to_bytes()))
    assert further is not None
    last = at.hand("site_3", further.to_bytes())
    assert letter_in(last) is None
    assert (decode_message(last).kind, decode_message(last).body["path"]) == ("reply", list(SITES))
    assert at.logged("site_3")[-1]["to"] == SERVER


def test_who_cannot_be_reached_is_passed_over_only_where_the_coordinator_said_so(desk: Callable[..., At]) -> None:
    at = desk("insecure-ring")
    at.begin("site_1")
    assert decode_message(relay(at, ("site_2", "site_3"), 1)).kind == "failed"
    first, second = (letter_in(relay(at, ("site_2", "site_3"), skipped, bridge=True)) for skipped in (0, 1))
    assert first is not None
    assert second is not None
    assert (decode_message(second.frame).recipient, second.path) == ("site_3", ())
    assert decode_message(first.frame).body["running"].tobytes() == decode_message(second.frame).body["running"].tobytes()
    assert [line["to"] for line in at.logged("site_1")[-2:]] == ["site_2", "site_3"]
    last = decode_message(relay(at, ("site_2", "site_3"), 2, bridge=True))  # nobody is left: it was the last of the relay
    assert (last.kind, last.recipient, last.body["running"].tobytes()) == (
        "reply",
        SERVER,
        decode_message(first.frame).body["running"].tobytes(),
    )
    assert decode_message(relay(at, ("site_2", "site_3"), 3, bridge=True)).kind == "failed"


@pytest.mark.parametrize("path", [("site_1",), ("site_4",), ("site_2", "site_2"), ("server",)])
def test_a_path_of_others_than_the_sites_of_the_attempt(desk: Callable[..., At], path: tuple[str, ...]) -> None:
    at = desk("insecure-ring")
    at.begin("site_1")
    assert decode_message(relay(at, path)).kind == "failed"
    assert {line["to"] for line in at.logged("site_1")} == {SERVER}


def test_what_is_no_relay_is_not_handed_on(desk: Callable[..., At]) -> None:
    at = desk()
    at.begin("site_1")
    reply = at.ask("site_1", "session", "contribute", {}, path=["site_2"])
    assert (reply.kind, "not handed on" in reply.body["reason"]) == ("failed", True)


def test_a_site_that_hands_nothing_on(desk: Callable[..., At]) -> None:
    at = desk("insecure-ring", "hand_on: false")
    at.begin("site_1")
    reply = decode_message(relay(at, ("site_2", "site_3")))
    assert (reply.kind, reply.body["reason"].startswith("site_1: hand_on: ")) == ("refused", True)
    assert at.ask("site_1", "session", "ring", {}).kind == "reply", "through the coordinator it takes part"


class Hands:
    """A transport whose sites hand on; ``gone`` cannot be reached."""

    def __init__(self, at: At, gone: tuple[str, ...] = ()) -> None:
        self.at, self.gone, self.parallel = at, gone, 1

    def deliver(self, frames: Any) -> Any:
        for site, data in frames:
            yield site, self.at.hand(site, data)

    def walk(self, path: Any, data: bytes, bridge: bool) -> Walk:
        return Walk(path[0], Loss("away", handed=False) if path[0] in self.gone else data)

    def clock(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


def test_an_engine_whose_sites_hand_on_is_refused_by_a_site_that_does_not(desk: Callable[..., At]) -> None:
    at = desk("insecure-ring", "hand_on: false")
    with pytest.raises(RunFailed, match="site_1: it refused: hand_on: "):
        invite(at.job(), Hands(at))
    assert type(invite(at.job(), Hands(at), "star")) is Signed, "on a star it joins"


def test_without_relays_nobody_is_asked_to_hand_on(desk: Callable[..., At]) -> None:
    at = desk("plain", "hand_on: false")
    assert type(invite(at.job(), Hands(at))) is SignedWalks


def test_the_coordinator_passes_over_sites_at_the_beginning_with_a_letter_for_each(desk: Callable[..., At]) -> None:
    at = desk("insecure-ring")
    frame = encode_message(Message(RUN, 1, 1, "session", "ring", SERVER, "site_1", {}))
    found = SignedWalks(Hands(at, gone=("site_1",)), at.key(SERVER)).walk(SITES, frame, True)
    assert isinstance(found.reply, bytes)
    letter = read_letter(found.reply)
    letter.verify(load_roster(at.homes / "site_2"))
    assert (decode_message(letter.frame).recipient, letter.path, letter.bridge) == ("site_2", ("site_3",), True)
    assert found.bridged == ("site_1",)
    lost = SignedWalks(Hands(at, gone=("site_1",)), at.key(SERVER)).walk(SITES, frame, False)
    assert (lost.at, lost.unhanded) == ("site_1", frame)


# -- strangers ----------------------------------------------------------------------------------------------------------------------------


def test_ten_thousand_messages_of_strangers_are_a_line_a_minute(desk: Callable[..., At], monkeypatch: pytest.MonkeyPatch) -> None:
    at, now = desk(), [1000.0]
    monkeypatch.setattr(resident_module.time, "monotonic", lambda: now[0])
    for number in range(200):
        at.hand("site_1", b"\x00" * number)
        now[0] += 0.9
    lines = at.logged("site_1")
    assert [line["kind"] for line in lines] == ["turned-away"] * len(lines)
    assert len(lines) == 3, "180 seconds"
    assert Strangers.EVERY == 60.0


def test_what_is_no_letter() -> None:
    for data in (b"", b"\x00", b"pppml-letter-1:", b"pppml-letter-1:\x00\x01"):
        with pytest.raises(WireError):
            read_letter(data)


def test_scores_go_round_a_ring_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hops of a sum of scores are hops: the coordinator of a star carries them in the name of the site before."""
    monkeypatch.setattr(resident_module.Registry, "discover", classmethod(lambda cls: REGISTRY))
    about = {"task": "tiny", "aggregator": "insecure-ring", "training": {"steps": 1}, "run": {"rounds": 1, "metrics": "sum", "seed": 5}}
    about["engine"] = {"use": "residents", "homes": str(tmp_path / "homes")}
    run = Experiment(about, registry=REGISTRY).run(tmp_path / "r", reporters=False, report=False)
    assert run.result["metrics"]["global"]["mean"]
    here = Experiment({**about, "engine": "local"}, registry=REGISTRY).run(tmp_path / "s", reporters=False, report=False)
    assert (here.result["model_sha256"], here.result["metrics"]) == (run.result["model_sha256"], run.result["metrics"])
    manifests = [(one.folder / "manifest.json").read_bytes() for one in (run, here)]
    assert manifests[0] == manifests[1]


def test_a_relay_that_its_session_does_not_declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InsecureRingSession, "relays", ())
    about = {"task": "tiny", "aggregator": "insecure-ring", "training": {"steps": 1}, "run": {"rounds": 1, "seed": 5}}
    with pytest.raises(PluginError, match="stage 'ring' is a relay that its session does not declare"):
        Experiment(about, registry=REGISTRY).run(tmp_path / "r", reporters=False, report=False)

"""The exact knowledge test: what each coalition can compute, from the real code over formal unknowns, and nothing else."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import networkx as nx
import pytest

from pppml_core.errors import RoundLost, WireError
from pppml_core.federation.identity import public_key
from pppml_core.interfaces.aggregation import Aggregator
from pppml_core.testing.knowledge import Basis, Row
from pppml_core.testing.knowledge_suite import KnowledgeSuite
from pppml_core.testing.recording import Attempt, HarnessResult
from pppml_core.wire.messages import SERVER
from pppml_secagg_plus import keys, masks, shamir
from pppml_secagg_plus.adverts import Advert
from pppml_secagg_plus.members import places_of
from pppml_secagg_plus.plugin import pppml_aggregators


@cache
def mask_key(pair: keys.Pair, site: str, private: bytes) -> bytes:
    """As in the plugin: computed once for all coalitions."""
    return keys.mask_key(pair, site, keys.Agreement(private))


@cache
def opened(pair: keys.Pair, site: str, private: bytes, owner: str, box: bytes) -> bytes:
    return keys.open_box(keys.box_keys(pair, site, keys.Agreement(private))[1], owner, site, pair.binding, box)


class Pooled:
    """All keys of masks that a coalition can compute in one attempt, from every share, seed and key in its members' memories and, with the
    server, in every message. Adverts are public. Written from the protocol, not from the plugin's own ``exposed``.
    """

    def __init__(self, result: HarnessResult, attempt: Attempt, coalition: Sequence[str]) -> None:
        messages = [p.message for p in result.transcript.passages if p.message.attempt == attempt.number and p.message.kind == "reply"]
        self.adverts = {m.sender: Advert.unpack(m.body["advert"]) for m in messages if m.stage == "advertise"}
        self.places = places_of(attempt.cohort)
        self.shares: dict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
        self.secrets: dict[tuple[str, str], bytes] = {}
        boxes = {(m.sender, to): box for m in messages if m.stage == "share" for to, box in m.body["boxes"].items()}
        for site in set(coalition) & set(attempt.cohort):
            # The first state is that of `open`, before anything was answered: what was drawn is that state.
            drawn = attempt.drawn[site]
            private = drawn[0] if drawn else None
            self.secrets |= {("key", site): drawn[1], ("seed", site): drawn[2]} if drawn else {}
            for (owner, to), box in boxes.items():
                if to == site and private is not None and SERVER in coalition:
                    self._open(owner, site, private, box)
            for state in attempt.history[site]:
                for owner, both in state.get("shares", {}).items():
                    self._keep(owner, site, both)
        if SERVER in coalition:
            for m in messages:
                for kind, name in (("seed", "seed_shares"), ("key", "key_shares")) if m.stage == "unmask" else ():
                    for owner, share in m.body[name].items():
                        self.shares[kind, owner][m.sender] = share
        self._combine()

    def _open(self, owner: str, site: str, private: bytes, box: bytes) -> None:
        own, other = self.adverts[site], self.adverts[owner]
        assert public_key(private) == own.box_key
        pair = keys.Pair.of(own.binding, self.places, (site, own.box_key), (owner, other.box_key))
        self._keep(owner, site, opened(pair, site, private, owner, box))

    def _keep(self, owner: str, holder: str, both: bytes) -> None:
        self.shares["key", owner][holder] = both[: shamir.SHARE_BYTES]
        self.shares["seed", owner][holder] = both[shamir.SHARE_BYTES :]

    def _combine(self) -> None:
        for (kind, owner), shares in self.shares.items():
            threshold = self.adverts[owner].terms.threshold
            if len(shares) >= threshold:
                try:
                    some = list(shares.items())[:threshold]
                    self.secrets[kind, owner] = shamir.combine({self.places[h] + 1: share for h, share in some})
                except WireError:
                    pytest.fail(f"honest shares of {owner} do not fit together")

    def mask_keys(self) -> Iterator[bytes]:
        """The keys of all masks that follow."""
        for (kind, owner), secret in self.secrets.items():
            if owner not in self.adverts:
                continue
            own = self.adverts[owner]
            if kind == "seed":
                yield keys.self_mask_key(secret, own.binding)
                continue
            for other, advert in self.adverts.items():
                if other != owner:
                    pair = keys.Pair.of(own.binding, self.places, (owner, own.mask_key), (other, advert.mask_key))
                    yield mask_key(pair, owner, secret)


class _Knowledge(KnowledgeSuite):
    component = pppml_aggregators()[0]
    capacity = 80

    def aggregator(self, monkeypatch: pytest.MonkeyPatch, basis: Basis) -> Aggregator:
        monkeypatch.setattr(masks, "add_mask", basis.add_mask)
        made: Aggregator = self.make()
        return made

    def rows(self, result: HarnessResult, coalition: Sequence[str], basis: Basis) -> Iterable[Row]:
        for attempt in result.attempts:
            for key in Pooled(result, attempt, coalition).mask_keys():
                if (row := basis.known(key)) is not None:
                    yield row


def received(result: HarnessResult, number: int) -> set[str]:
    """Whose masked input came to the server in an attempt."""
    return {
        p.message.sender
        for p in result.transcript.sent_by_sites()
        if (p.message.attempt, p.message.stage, p.message.recipient) == (number, "mask", SERVER)
    }


class TestComplete(_Knowledge):
    """All cohorts up to seven; three sites need each other, so every loss ends an attempt and another one follows."""

    sites = 3

    def expected(self, result: HarnessResult, coalition: Sequence[str]) -> Iterable[Collection[str]]:
        """As many members as the threshold hold everything; the server must be with them, for it has the masked inputs."""
        sets = [set(over) for over in super().expected(result, coalition)]
        members = [site for site in coalition if site != SERVER]
        for attempt in result.attempts:
            threshold = 2 * len(attempt.cohort) // 3 + 1
            if SERVER in coalition and len(set(members) & set(attempt.cohort)) >= threshold:
                sets += [{site} for site in received(result, attempt.number) - set(members)]
        return sets


class EveryoneNeeded(_Knowledge):
    """Four sites, none of which may vanish."""

    config: Mapping[str, Any] = {"threshold": 4}


STAGES = ("advertise", "share", "mask", "agree", "unmask")


@pytest.mark.parametrize("do", ["drop", "drop-reply"])
@pytest.mark.parametrize("stage", STAGES)
def test_one_loss_of_four(monkeypatch: pytest.MonkeyPatch, stage: str, do: str) -> None:
    """With t = 3 the sum goes on without b; with t = 4 the attempt ends, and another one follows over all four."""
    fault = {"site": "b", "stage": stage, "do": do, "attempt": 1}
    result, basis = TestComplete().play(monkeypatch, 4, fault)
    assert result.aborted is None
    TestComplete().assert_knows(result, basis, fault)
    result, basis = EveryoneNeeded().play(monkeypatch, 4, fault, attempts=2)
    assert isinstance(result.aborted, RoundLost) if stage == "unmask" else len(result.attempts) == 2
    EveryoneNeeded().assert_knows(result, basis, f"{fault}, restarted")


@pytest.mark.parametrize("other", ["a", "b"])
@pytest.mark.parametrize("stage", STAGES[:4])
def test_two_losses_of_five_and_an_attempt_without_one_more(monkeypatch: pytest.MonkeyPatch, stage: str, other: str) -> None:
    """What two attempts over different sites give together is the second one's sum."""
    faults = [{"site": site, "stage": stage, "do": "drop", "attempt": 1} for site in "bc"]
    gone = {"site": other, "stage": "open", "do": "drop", "attempt": 2}
    result, basis = TestComplete().play(monkeypatch, 5, *faults, gone, attempts=2)
    assert result.aborted is None
    assert len(result.attempts) == 2
    assert set(result.survivors) == set("abcde") - {other}
    TestComplete().assert_knows(result, basis, (faults, gone))


class RingKnowledge(_Knowledge):
    """A ring of six with four neighbours each: the parts of the ring that a coalition leaves are what it knows."""

    config: Mapping[str, Any] = {"preset": "paper"}
    sites = 6
    min_sites = 6
    exact_promise = False

    def expected(self, result: HarnessResult, coalition: Sequence[str]) -> Iterable[Collection[str]]:
        if SERVER not in coalition:
            return []
        members = set(coalition) - {SERVER}
        (attempt,) = result.attempts
        near = {m.sender: set(m.body["boxes"]) for m in (p.message for p in result.transcript.sent_by_sites()) if m.stage == "share"}
        alive = received(result, attempt.number) if result.aborted is None else set()
        asked = [p.message.body for p in result.transcript.passages if p.message.stage == "mask" and p.message.sender == SERVER]
        shared = set(asked[0]["shared"]) if asked else set()
        # A vanished site's key is rebuilt by the server; of others, by as many members as the threshold around them.
        open_keys = members | (shared - alive) | {site for site in near if len(near[site] & members) >= 4}
        net = nx.Graph()
        net.add_nodes_from(alive - members)
        net.add_edges_from(
            (one, other)
            for one, other in itertools.combinations(alive - members, 2)
            if other in near[one] and one not in open_keys and other not in open_keys
        )
        return list(nx.connected_components(net))


@pytest.mark.parametrize("sites", [6, 7])
def test_ring(monkeypatch: pytest.MonkeyPatch, sites: int) -> None:
    suite = RingKnowledge()
    result, basis = suite.play(monkeypatch, sites)
    assert result.aborted is None
    suite.assert_knows(result, basis, f"{sites} sites")


RING_FAULTS = [{"site": "a", "stage": stage, "do": "drop"} for stage in ("commit", "advertise", "share", "mask", "agree", "unmask")]


@pytest.mark.parametrize("fault", RING_FAULTS, ids=lambda fault: fault["stage"])
def test_ring_with_one_loss(monkeypatch: pytest.MonkeyPatch, fault: Mapping[str, Any]) -> None:
    suite = RingKnowledge()
    result, basis = suite.play(monkeypatch, 6, fault)
    assert result.aborted is None
    suite.assert_knows(result, basis, fault)


def test_one_mask_key_for_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where all pairs use one key, even the server alone knows more than the sum, and the test sees it."""
    suite = TestComplete()
    monkeypatch.setattr(keys, "mask_key", lambda pair, site, private: bytes(32))
    result, basis = suite.play(monkeypatch, 4)
    with pytest.raises(AssertionError, match="server knows"):
        suite.assert_knows(result, basis, "one key for all")

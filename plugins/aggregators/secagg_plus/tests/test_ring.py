"""The sparse graph: who is whose neighbour, the degrees and thresholds, and a server that tries to shape the ring."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from pppml_core.errors import InconsistentModel, TooFewSurvivors, WireError
from pppml_core.federation.policy import Policy
from pppml_core.testing.harness import HarnessResult, SessionHarness, site_names
from pppml_core.testing.lying import edited
from pppml_core.testing.parties import identity_of
from pppml_core.wire.messages import Exchange
from pppml_secagg_plus import adverts, degree
from pppml_secagg_plus.adverts import Advert
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.graph import Graph
from pppml_secagg_plus.server_side import ServerSide
from pppml_secagg_plus.session import SecAggPlus
from pppml_secagg_plus.site_side import nonce_statement
from pppml_secagg_plus.terms import Terms, settle

SITES = site_names(8)


def harness(coordinate: Any = None, sites: Any = SITES, config: Mapping[str, Any] = {"preset": "paper"}, **options: Any) -> SessionHarness:
    return SessionHarness(SecAggPlus(SecAggPlusConfig(**config)), sites, 8, coordinate=coordinate, **options)


def near(result: HarnessResult, site: str) -> set[str]:
    return next(
        set(p.message.body["boxes"]) for p in result.transcript.sent_by_sites() if (p.message.stage, p.message.sender) == ("share", site)
    )


def refusals(result: HarnessResult, stage: str) -> dict[str, str]:
    assert not result.crashes, result.crashes
    return {site: why for where, site, why in result.losses if where == stage}


# -- the graph ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "k"), [(5, 2), (6, 4), (9, 4), (12, 6), (30, 8)])
def test_a_ring_is_a_harary_graph(count: int, k: int) -> None:
    """k-regular, symmetric, and k-connected: no k - 1 sites take it apart."""
    members = site_names(count)
    graph = Graph(members, k, b"seed")
    net = nx.Graph([(site, other) for site in members for other in graph.neighbours(site)])
    assert all(len(graph.neighbours(site)) == k and site not in graph.neighbours(site) for site in members)
    assert all(site in graph.neighbours(other) for site in members for other in graph.neighbours(site))
    assert nx.is_isomorphic(net, nx.circulant_graph(count, list(range(1, k // 2 + 1))))
    assert nx.node_connectivity(net) == k


def test_the_order_is_drawn_from_the_seed() -> None:
    """The same for equal seeds; over many seeds every site is every other's neighbour equally often."""
    assert Graph(SITES, 4, b"x").neighbours("a") == Graph(SITES, 4, b"x").neighbours("a")
    counts = Counter(other for i in range(2000) for other in Graph(SITES, 4, b"%d" % i).neighbours("a"))
    expected = 2000 * 4 / 7
    assert set(counts) == set(SITES) - {"a"}
    assert all(abs(count - expected) < 5 * (2000 * 4 / 7 * 3 / 7) ** 0.5 for count in counts.values())


def test_few_members_are_a_complete_graph() -> None:
    graph = Graph(SITES[:4], 4, b"x")
    assert graph.complete
    assert graph.degree == 3
    assert graph.holders("a") == set(SITES[:4])


def test_each_attempt_has_a_ring_of_its_own() -> None:
    """All sites compute the same one (their boxes go to their neighbours), and another attempt gives another."""
    runs = [harness(attempt=i + 1).run() for i in range(6)]
    for result in runs:
        assert result.correct
        assert result.transcript.stages() == ("commit", "advertise", "share", "mask", "agree", "unmask")
        assert all(site in near(result, other) for site in SITES for other in near(result, site))
    assert len({tuple(sorted(near(result, "a"))) for result in runs}) > 1


# -- degrees and thresholds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("population", "marked", "drawn"), [(6, 2, 3), (7, 4, 4), (5, 0, 2), (8, 8, 3)])
def test_tails_by_counting(population: int, marked: int, drawn: int) -> None:
    hands = list(itertools.combinations(range(population), drawn))
    for least in range(-1, drawn + 2):
        hits = sum(sum(card < marked for card in hand) >= least for hand in hands)
        assert degree.upper_tail(population, marked, drawn, least) == Fraction(hits, len(hands))


@pytest.mark.parametrize(("n", "k", "gone"), [(7, 2, 2), (7, 2, 3), (8, 4, 4), (8, 4, 5), (9, 4, 5)])
def test_parts_by_counting(n: int, k: int, gone: int) -> None:
    """All ways to take sites out of a ring: the bound is never below the truth, and zero where no way takes it apart."""
    net = nx.circulant_graph(n, list(range(1, k // 2 + 1)))
    ways = list(itertools.combinations(range(n), gone))
    apart = sum(not nx.is_connected(net.subgraph(set(net) - set(way))) for way in ways)
    bound = degree.parts_failure(n, gone, k)
    assert Fraction(apart, len(ways)) <= bound
    assert degree.parts_failure(n, k - 1, k) == 0


def test_shares_and_loss_by_drawing_rings() -> None:
    """Exact over all orders of a small ring: the union bounds hold, and the single-site probabilities behind them are equal."""
    n, k, corrupt, dropped, t = 7, 4, 3, 2, 3
    bad, worst, starved, lost = 0, 0, 0, 0
    orders = list(itertools.permutations(range(n)))
    for order in orders:
        place = {site: i for i, site in enumerate(order)}
        around = {site: [order[(place[site] + s) % n] for s in (-2, -1, 1, 2)] for site in order}
        held = [sum(o < corrupt for o in around[site]) for site in range(corrupt, n)]
        worst += held[0] >= t
        bad += any(count >= t for count in held)
        left = [sum(o >= dropped for o in around[site]) for site in range(n)]
        starved += left[n - 1] < t
        lost += any(count < t for count in left)
    assert Fraction(worst, len(orders)) == degree.upper_tail(n - 1, corrupt, k, t)
    assert Fraction(bad, len(orders)) <= degree.shares_failure(n, corrupt, k, t)
    assert Fraction(starved, len(orders)) == degree.upper_tail(n - 1, dropped, k, k - t + 1)
    assert Fraction(lost, len(orders)) <= degree.loss_failure(n, dropped, k, t)


@pytest.mark.parametrize(("n", "corrupt", "dropped"), [(50, 10, 5), (100, 20, 10), (300, 60, 30), (1000, 200, 100)])
def test_the_chosen_degree_is_the_smallest(n: int, corrupt: int, dropped: int) -> None:
    found = degree.choose(n, corrupt, dropped, 40, 30)
    assert found is not None
    k, t = found
    assert degree.private(n, corrupt, dropped, k, t, 40)
    assert degree.correct(n, dropped, k, t, 30)
    assert 2 * t > k + 1 + 1
    for smaller in range(2, k, 2):
        for other in range((smaller + 2) // 2 + 1, smaller + 1):
            assert not (degree.private(n, corrupt, dropped, smaller, other, 40) and degree.correct(n, dropped, smaller, other, 30))


def test_no_degree_below_all_is_found_for_a_few_sites() -> None:
    assert degree.choose(5, 2, 1, 40, 30) is None
    assert settle(SecAggPlusConfig(preset="large"), 5) == Terms(5, 4, 4)


def readme_table() -> list[str]:
    """The rows of the README's table."""
    rows = []
    for n in (50, 100, 200, 500, 1000, 5000):
        cells = []
        for corrupt, dropout in ((0.05, 0.05), (0.1, 0.1), (0.2, 0.1), (0.33, 0.1)):
            terms = settle(SecAggPlusConfig(preset="large", corrupt=corrupt, dropout=dropout), n)
            assert isinstance(terms, Terms)
            cells.append(f"{terms.degree}, {terms.threshold}")
        rows.append(f"| {n:,} | " + " | ".join(cells) + " |")
    return rows


def test_the_table_of_the_readme() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    for row in readme_table():
        assert row in text, row


@pytest.mark.parametrize("stage", ["share", "mask", "agree", "unmask"])
def test_as_many_as_promised_vanish_from_a_large_ring(stage: str) -> None:
    """Forty sites, preset `large`: 10 % may vanish, at any stage."""
    config = {"preset": "large"}
    made = harness(sites=site_names(40), config=config)
    assert made.session().terms.sparse
    assert made.session().guarantees.dropouts == 4
    gone = [{"site": f"s{i:03d}", "stage": stage, "do": "drop"} for i in (3, 4, 5, 30)]
    result = harness(sites=site_names(40), config=config, faults=gone).run()
    assert result.correct, result.aborted
    assert len(result.survivors) == (40 if stage in ("agree", "unmask") else 36)


# -- a server that shapes the ring --------------------------------------------------------------------------------------------------------


def lie(stage: str, edit: Any, **options: Any) -> HarnessResult:
    return harness(lambda s, ctx: edited(s, ctx, lambda op: edit(op) if op.stage == stage else op), **options).run()


def common(**changes: Any) -> Any:
    return lambda op: replace(op, common={**op.common, **changes})


def only(site: str, **changes: Any) -> Any:
    return lambda op: replace(op, bodies={**op.bodies, site: {**op.bodies[site], **changes}})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda rows: {"commitments": rows ^ np.uint8(1)}, "this site's commitment is missing or was changed"),
        (lambda rows: {"members": list(SITES[1:]), "commitments": rows[1:]}, "this site's commitment is missing or was changed"),
        (lambda rows: {"commitments": rows[1:]}, "not 32 bytes for each"),
        (lambda rows: {"commitments": rows.astype(np.int8)}, "not 32 bytes for each"),
        (lambda rows: {"commitments": None}, "not 32 bytes for each"),
        (lambda rows: {"members": None}, "not a list of names"),
        (lambda rows: {"members": [*SITES, "zz"]}, "zz cannot be in this list"),
    ],
)
def test_commitments_without_the_own_one(wrong: Any, reason: str) -> None:
    """In ``_commitments``: a site shows its nonce only to those who are shown its commitment."""
    result = lie("advertise", lambda op: only("a", **wrong(op.common["commitments"]))(op))
    found = refusals(result, "advertise")
    assert set(found) == {"a"}
    assert reason in found["a"]
    assert result.correct


@pytest.mark.parametrize(
    "wrong",
    [
        lambda op: {"digests": op.common["digests"][:-1]},
        lambda op: {"digests": op.common["digests"].astype(np.int32)},
        lambda op: {"digests": None},
        lambda op: {"members": None},
        lambda op: {"members": [*SITES, "zz"]},
        lambda op: {"members": [*SITES, "a"]},
        lambda op: {"members": []},
    ],
)
def test_malformed_members(wrong: Any) -> None:
    result = lie("share", lambda op: common(**wrong(op))(op))
    assert set(refusals(result, "share")) == set(SITES)


@pytest.mark.parametrize("field", ["adverts", "signatures"])
def test_malformed_adverts(field: str) -> None:
    result = lie("share", only("a", **{field: None}))
    assert refusals(result, "share").keys() == {"a"}
    assert "adverts and their signatures are maps" in refusals(result, "share")["a"]


def test_members_without_the_site_itself() -> None:
    result = lie("share", lambda op: only("a", members=list(SITES[1:]), digests=op.common["digests"][1:])(op))
    assert "members: this site is not in the list" in refusals(result, "share")["a"]


def test_an_own_advert_that_was_changed() -> None:
    """In ``_members``: the ring is drawn from the advert this site sent."""

    def edit(op: Exchange) -> Exchange:
        rows = op.common["digests"].copy()
        rows[0, 0] ^= 1
        return only("a", digests=rows)(op)

    result = lie("share", edit)
    assert "this site's advert was changed" in refusals(result, "share")["a"]


def test_a_neighbours_advert_that_did_not_decide_the_ring() -> None:
    """In ``_read_adverts``: the digests are those of the adverts. b helps the server and signs a second one."""

    def edit(op: Exchange) -> Exchange:
        bodies = dict(op.bodies)
        for site, body in op.bodies.items():
            if "b" in body["adverts"]:
                packed, signature = resigned("b", body["adverts"]["b"], commitment=bytes(32))
                bodies[site] = {"adverts": {**body["adverts"], "b": packed}, "signatures": {**body["signatures"], "b": signature}}
        return replace(op, bodies=bodies)

    found = refusals(lie("share", edit), "share")
    assert len(found) == 4
    assert all("is not the one that decided the ring" in why for why in found.values())


def resigned(site: str, packed: bytes, **changes: Any) -> tuple[bytes, bytes]:
    advert = replace(Advert.unpack(packed), **changes)
    return advert.pack(), identity_of(site).sign(adverts.to_sign(site, advert.binding, advert.pack()))


class Helped(ServerSide):
    """A server that draws the ring anew, from another advert of b, who helps it."""

    changes: Mapping[str, Any] = {}

    def _advertise(self, committed: Any) -> Any:
        yield from super()._advertise(committed)
        self.packed["b"], self.signatures["b"] = resigned("b", self.packed["b"], **self.changes)
        return self._graph(tuple(name for name in self.ctx.cohort if name in self.packed))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nonce": b"\3" * 32}, "b had committed to another nonce"),
        ({"commitments": b"\3" * 32}, "b was shown other commitments"),
        ({"terms": Terms(8, 2, 4)}, "b signed other terms"),
    ],
)
def test_an_advert_that_would_order_the_ring_anew(changes: Any, reason: str) -> None:
    """In ``_read_adverts``: nonces as committed to, and the same commitments for all neighbours."""

    def coordinate(session: Any, ctx: Any) -> Any:
        side = Helped(session.terms, session.value, session.word, ctx)
        side.changes = changes
        return side.run()

    found = refusals(harness(coordinate).run(), "share")
    assert "this site's advert was changed" in found.pop("b")
    assert len(found) == 4
    assert all(reason in why for why in found.values())


def test_an_honest_server_leaves_out_a_site_that_changed_its_nonce() -> None:
    def replies(stage: str, site: str, body: Any) -> Any:
        if (stage, site) != ("advertise", "b"):
            return body
        return dict(zip(("advert", "signature"), resigned("b", body["advert"], nonce=b"\3" * 32), strict=True))

    result = harness(lambda s, ctx: edited(s, ctx, replies=replies)).run()
    assert result.correct
    assert result.survivors == ("a", "c", "d", "e", "f", "g", "h")


@pytest.mark.parametrize("wrong", [{"signature": bytes(64)}, {"signature": b""}, {"commitment": b""}, {"binding": b""}])
def test_an_honest_server_leaves_out_a_commitment_that_is_none(wrong: Any) -> None:
    def replies(stage: str, site: str, body: Any) -> Any:
        return {**body, **wrong} if (stage, site) == ("commit", "b") else body

    result = harness(lambda s, ctx: edited(s, ctx, replies=replies)).run()
    assert result.correct
    assert result.survivors == ("a", "c", "d", "e", "f", "g", "h")


def test_an_honest_server_leaves_out_a_commitment_of_another_length() -> None:
    """In ``ServerSide._commit``: signed well, by a site that lies."""

    def replies(stage: str, site: str, body: Any) -> Any:
        if (stage, site) != ("commit", "b"):
            return body
        return {**body, "commitment": b"short", "signature": identity_of("b").sign(nonce_statement(body["binding"], b"short"))}

    result = harness(lambda s, ctx: edited(s, ctx, replies=replies)).run()
    assert result.correct
    assert "b" not in result.survivors


def test_the_first_exchange_finds_another_model_and_too_few_sites() -> None:
    result = harness(models={"b": b"another model"}).run()
    assert isinstance(result.aborted, InconsistentModel)
    assert "stage commit" in str(result.aborted)
    result = harness(faults=[{"site": site, "stage": "commit", "do": "drop"} for site in "abcde"]).run()
    assert isinstance(result.aborted, TooFewSurvivors)
    assert "stage commit" in str(result.aborted)


def test_a_signature_from_outside_the_neighbourhood() -> None:
    """In ``_check_signatures``: only those who hold this site's shares count."""
    far: dict[str, str] = {}

    def edit(op: Exchange) -> Exchange:
        known = op.bodies["a"]["signatures"]
        stranger = next(site for site in SITES if site not in known)
        far["name"] = stranger
        signature = next(body["signatures"][stranger] for body in op.bodies.values() if stranger in body["signatures"])
        return only("a", signatures={**known, stranger: signature})(op)

    found = refusals(lie("unmask", edit), "unmask")
    assert f"{far['name']} cannot be in this list" in found["a"]


def test_policy_on_a_ring() -> None:
    """In ``_check_policy``: the smallest degree; and n is the number of share holders."""
    result = harness(policies={"a": Policy(min_degree=5), "b": Policy(min_degree=4)}).run()
    assert refusals(result, "share").keys() == {"a"}
    assert "min_degree: 4 neighbours, at least 5 required" in refusals(result, "share")["a"]
    result = harness(policies={"a": Policy(max_colluders=3)}).run()
    assert "max_colluders: 4 of 5 shares are too few" in refusals(result, "share")["a"]
    # A complete graph has no degree to speak of.
    assert harness(sites=site_names(5), policies={"a": Policy(min_degree=10)}).run().losses == ()


def test_too_few_neighbours_left() -> None:
    """In ``_check_enough`` and at the server: enough sites in all, but too few around one of them. Nothing is released."""
    for pair in itertools.combinations(SITES, 2):
        result = harness(faults=[{"site": site, "stage": "mask", "do": "drop"} for site in pair]).run()
        close = pair[1] in near(result, pair[0])
        if close or near(result, pair[0]) & near(result, pair[1]):
            assert isinstance(result.aborted, TooFewSurvivors), pair
            assert not any(result.released.values()), "what cannot succeed is not begun"
        else:
            assert result.correct, pair


def test_pinned_needs_everybody() -> None:
    with pytest.raises(WireError, match="no identity is pinned for b"):
        adverts.pinned({"a": bytes(32)}, ("a", "b"))

"""The exact knowledge test, on sums small enough to know the answer, and on leaky ones it must catch."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pppml_core.component import Component, ComponentConfig
from pppml_core.errors import RoundAborted
from pppml_core.federation.identity import agreement_key, public_key, shared_key
from pppml_core.interfaces.aggregation import Aggregator, Guarantees, Session, Sum, WireField
from pppml_core.testing import KnowledgeSuite, insecure
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.insecure_plugin import pppml_aggregators as insecure_aggregators
from pppml_core.testing.knowledge import PRIME, Basis, coefficients, indicators, known_sums, reduce, spans, words
from pppml_core.testing.parties import acts
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.wire.messages import SERVER, Exchange, Relay

# -- linear algebra -----------------------------------------------------------------------------------------------------------------------


def generator():
    return np.random.Generator(np.random.PCG64(3))


def test_reduction_is_unique_and_keeps_the_span():
    draw = generator()
    for _ in range(50):
        rows = draw.integers(-2, 3, (6, 9))
        mixed = draw.integers(-3, 4, (8, 6)) @ rows
        reduced = reduce(rows)
        pivots = [int(np.flatnonzero(row)[0]) for row in reduced]
        assert pivots == sorted(set(pivots))
        assert all(reduced[i, p] == 1 and np.count_nonzero(reduced[:, p]) == 1 for i, p in enumerate(pivots))
        assert spans(reduced, mixed)
        assert len(reduced) == np.linalg.matrix_rank(rows)
        if np.linalg.matrix_rank(mixed) == len(reduced):
            assert np.array_equal(reduce(mixed), reduced)


def test_known_sums_against_exhaustive_search():
    """The oracle: over GF(3) all combinations of the rows are listed, and those without a mask are kept."""
    draw = generator()
    for _ in range(40):
        rows = draw.integers(0, 3, (4, 7))
        found = {
            tuple(int(x) for x in total[:3])
            for c in itertools.product(range(3), repeat=4)
            if not (total := np.array(c) @ rows % 3)[3:].any()
        }
        basis = known_sums(rows, [0, 1, 2], prime=3)
        listed = {tuple(int(x) for x in np.array(c) @ basis % 3) for c in itertools.product(range(3), repeat=len(basis))}
        assert listed == found


def test_a_sum_behind_masks_is_not_known_until_the_mask_is():
    a, b, m, k = np.eye(4, dtype=np.int64)
    assert known_sums([a + m, b - m + k], [0, 1]).size == 0
    assert words(known_sums([a + m, b - m + k, k], [0, 1]), "ab") == ["a + b"]
    assert words(known_sums([a + m, b - m + k, k, m], [0, 1]), "ab") == ["a", "b"]
    assert known_sums([], [0, 1]).shape == (0, 2)
    assert np.array_equal(known_sums([a + b], [0, 1]), indicators([{"a", "b"}], "ab"))
    assert not spans(indicators([{"a", "b"}], "ab"), indicators([{"a"}], "ab"))
    assert words(np.array([[1, PRIME - 2]]), "ab") == ["a + -2 b"]


def test_words_of_any_ring_become_small_integers():
    signed = [0, 1, -1, 5, -3]
    for dtype in (np.uint32, np.uint64):
        assert coefficients(np.array(signed).astype(dtype)).tolist() == signed
    modulus = 1_032_193
    assert coefficients(np.array([v % modulus for v in signed], np.uint64), modulus).tolist() == signed
    assert coefficients(np.array([1, 255], np.uint8)).tolist() == [1, -1]


def test_the_basis_names_unknowns_and_who_expanded_them():
    basis = Basis("ab", 4)
    with acts("a"):
        one = basis.unit(b"x")
    assert np.array_equal(basis.unit(b"x"), one)
    assert one.tolist() == [0, 0, 1, 0]
    assert basis.expanded == {"a": {2}, SERVER: {2}}
    assert basis.known(b"y") is None
    assert np.array_equal(basis.known(b"x"), one)
    total = np.zeros(4, np.uint32)
    basis.add_mask(total, b"z", -1)
    assert total.tolist() == [0, 0, 0, 2**32 - 1]
    assert basis.residues(b"z", 4, 97).tolist() == [0, 0, 0, 1]
    with pytest.raises(AssertionError, match="capacity"):
        basis.unit(b"one too many")
    with pytest.raises(AssertionError, match="in parts"):
        basis.add_mask(total[:2], b"z", 1)


# -- sums whose answer is known -----------------------------------------------------------------------------------------------------------


def expand(total, key, sign):
    words = np.frombuffer(np.random.Generator(np.random.PCG64(int.from_bytes(key, "big"))).bytes(total.nbytes), total.dtype)
    total += words if sign > 0 else np.uint32(0) - words


class Pairwise(Session):
    """Pairwise masks from agreed keys, without recovery: whoever is lost ends the attempt. The server and any n - 2 sites learn the sum."""

    @property
    def guarantees(self):
        return Guarantees((SERVER,), (), (), 0, len(self.cohort) - 2, 0, "honest but curious")

    @property
    def fields(self):
        return (
            WireField("advertise", "key", "bytes", (), 32, "clear", "public key"),
            WireField("masked", "values", "uint32", (self.value.length,), 4 * self.value.length, "masked", "update"),
        )

    def coordinate(self, ctx):
        adverts = yield Exchange("advertise", {s: {} for s in ctx.cohort})
        keys = {s: body["key"] for s, body in adverts.replies.items()}
        if adverts.lost:
            raise RoundAborted("lost")
        total = np.zeros(self.value.length, np.uint32)
        outcome = yield Exchange(
            "masked", {s: {"keys": keys} for s in ctx.cohort}, lambda s, body: np.add(total, body["values"], out=total)
        )
        if outcome.lost:
            raise RoundAborted("lost")
        return Sum(total.view(np.int32).astype(np.int64), outcome.answered)

    def open(self, ctx):
        return {"private": agreement_key(ctx.entropy)[0]}

    def handle(self, state, message, ctx):
        if message.stage == "advertise":
            return state, {"key": public_key(state["private"])}
        total = ctx.contribution().astype(np.uint32)
        for peer, key in message.body["keys"].items():
            if peer != ctx.site:
                self.add_mask(total, self.key(state, key, *sorted((ctx.site, peer))), 1 if ctx.site < peer else -1)
        return {}, {"values": total}

    def key(self, state, peer, *names):
        return shared_key(state["private"], peer, "-".join(names).encode())

    def add_mask(self, total, key, sign):
        expand(total, key, sign)


class PairwiseSuite(KnowledgeSuite):
    """The session's masks are replaced on the class, and a coalition computes every pairwise key of its members."""

    component = Component("pairwise", ComponentConfig, "x:Y", "for tests")
    session: type[Session] = Pairwise

    def aggregator(self, monkeypatch, basis):
        monkeypatch.setattr(Pairwise, "add_mask", lambda self, total, key, sign: basis.add_mask(total, key, sign))
        return self.session

    def expected(self, result, coalition):
        """There are no self-masks: of an attempt in which all honest sites have sent, the masks of the others can be taken out."""
        for attempt in result.attempts:
            messages = result.view([SERVER], attempt.number)["messages"]
            sent = {m.sender for m in messages if m.stage == "masked" and m.kind == "reply"}
            honest = set(attempt.cohort) - set(coalition)
            if SERVER in coalition and honest <= sent and (honest < set(attempt.cohort) or attempt.aborted is None):
                yield honest

    def rows(self, result, coalition, basis):
        for attempt in result.attempts:
            publics = {}
            for m in result.view([SERVER], attempt.number)["messages"]:
                if m.stage == "advertise" and m.kind == "reply":
                    publics[m.sender] = m.body["key"]
            for site in {s for s in attempt.cohort if s in coalition and attempt.drawn[s]}:
                for peer in set(publics) - {site}:
                    row = basis.known(shared_key(attempt.drawn[site][0], publics[peer], "-".join(sorted((site, peer))).encode()))
                    if row is not None:
                        yield row


class TestPairwise(PairwiseSuite):
    max_sites = 6
    sites = 4
    capacity = 64


class TestPairwiseOfFiftyUnknowns(PairwiseSuite):
    """7 sites, all 255 coalitions."""

    min_sites = 7
    sites = 4
    capacity = 64


class HEStar(Session):
    """Sites encrypt to the first site's key; the server adds; the first site decrypts the sum, which the server shows to nobody."""

    backend = TransparentBackend(TransparentConfig())

    @property
    def guarantees(self):
        return Guarantees((SERVER,), (), (), 0, 0, 0, "the server and the first site do not collude")

    @property
    def fields(self):
        size = 8 * self.value.length
        return (
            WireField("keys", "public", "bytes", (), 99, "clear", "public key"),
            WireField("encrypted", "values", "bytes", (), size + 99, "encrypted", "update"),
            WireField("decrypt", "sum", "uint64", (self.value.length,), size, "clear", "sum"),
        )

    def coordinate(self, ctx):
        params, first = self.backend.plan(self.value, len(ctx.cohort)), ctx.cohort[0]
        keys = yield Exchange("keys", {first: {}})
        if keys.lost:
            raise RoundAborted("lost")
        outcome = yield Exchange("encrypted", {s: {"public": keys.replies[first]["public"]} for s in ctx.cohort})
        if outcome.lost:
            raise RoundAborted("lost")
        total = None
        for body in outcome.replies.values():
            total = body["values"] if total is None else self.backend.add(params, total, body["values"])
        answer = yield Exchange("decrypt", {first: {"total": total}})
        if answer.lost:
            raise RoundAborted("lost")
        return Sum(params.integers(answer.replies[first]["sum"]), outcome.answered)

    def handle(self, state, message, ctx):
        from pppml_core.randomness import Secret

        params = self.backend.plan(self.value, len(ctx.cohort))
        if message.stage == "keys":
            public, secret = self.backend.keygen(params)
            return {"secret": secret.reveal()}, {"public": public}
        if message.stage == "encrypted":
            return state, {"values": self.backend.encrypt(params, message.body["public"], params.residues(ctx.contribution()))}
        return {}, {"sum": self.backend.decrypt(params, Secret(state["secret"]), message.body["total"])}


class TestHEStar(KnowledgeSuite):
    """The holder of the key learns the sum too, and with the server everything."""

    component = Component("he-star", ComponentConfig, "x:Y", "for tests")
    sites, max_sites, capacity, modulus = 4, 5, 16, 1_032_193

    def aggregator(self, monkeypatch, basis):
        return HEStar

    def expected(self, result, coalition):
        for attempt in result.attempts:
            messages = result.view([SERVER], attempt.number)["messages"]
            first, sites = attempt.cohort[0], set(attempt.cohort) - set(coalition)
            sent = {m.sender for m in messages if m.stage == "encrypted" and m.kind == "reply"}
            if SERVER in coalition and first in coalition:
                yield from ([s] for s in sent - set(coalition))
            elif (first in coalition and any(m.stage == "decrypt" for m in messages)) or (
                SERVER in coalition and any("sum" in m.body for m in messages)
            ):
                yield sites


class TestInsecureMasked(KnowledgeSuite):
    """The server knows every seed, so it knows every update it received."""

    component = insecure_aggregators()[0]
    sites, max_sites, capacity = 4, 5, 64
    exact_promise = False

    def aggregator(self, monkeypatch, basis):
        def unit(seed, length):
            return basis.unit(seed.to_bytes(8, "big")).astype(np.uint64)

        monkeypatch.setattr(insecure, "_mask", unit)
        return self.make()

    def rows(self, result, coalition, basis):
        for m in result.view(coalition)["messages"]:
            for seed in (m.body.get("seeds", {}) | m.body.get("given", {})).values():
                if (row := basis.known(seed.to_bytes(8, "big"))) is not None:
                    yield row
        for attempt in result.attempts:
            for site in set(coalition) & set(attempt.cohort):
                drawn = (int.from_bytes(d, "big").to_bytes(8, "big") for d in attempt.drawn[site])
                yield from (row for seed in drawn if (row := basis.known(seed)) is not None)

    def expected(self, result, coalition):
        sent = [p.message.sender for p in result.transcript.passages if p.message.stage == "masked" and p.message.kind == "reply"]
        return [{s} for s in sent if s not in coalition] if SERVER in coalition else []


# -- leaky ones ---------------------------------------------------------------------------------------------------------------------------


class ConfirmsLate(Pairwise):
    """Starts again after the server has had the sum: over other sites, the difference is one site's update."""

    def coordinate(self, ctx):
        summed = yield from super().coordinate(ctx)
        outcome = yield Exchange("confirm", {s: {} for s in ctx.cohort})
        if outcome.lost:
            raise RoundAborted("lost")
        return summed

    def handle(self, state, message, ctx):
        return (state, {}) if message.stage == "confirm" else super().handle(state, message, ctx)


class NeighboursOnly(Pairwise):
    """Masks along a cycle: two neighbours and the server isolate the site between them."""

    def handle(self, state, message, ctx):
        near = [ctx.cohort[(ctx.cohort.index(ctx.site) + step) % len(ctx.cohort)] for step in (1, -1)]
        keys = {s: k for s, k in message.body.get("keys", {}).items() if s in near}
        return super().handle(state, replace(message, body={"keys": keys}), ctx)


class SharedMask(Pairwise):
    """All pairs of one attempt share one mask."""

    def key(self, state, peer, *names):
        return bytes(32)


class InItsState(Pairwise):
    """Keeps what came through its hands: nothing it should not know."""

    def handle(self, state, message, ctx):
        new, body = super().handle(state, message, ctx)
        return {**state, **new, "seen": [v for v in body.values() if isinstance(v, np.ndarray)]}, body


class PromisesLess(Pairwise):
    @property
    def guarantees(self):
        return Guarantees((SERVER,), (), (), 0, 1, 0, "honest but curious")


def suite(session, base=PairwiseSuite, **members):
    return type("Leaky", (base,), {"session": session, "sites": 4, "max_sites": 5, "capacity": 64, **members})()


@pytest.mark.parametrize(
    ("session", "test", "arguments"),
    [
        (ConfirmsLate, "test_sessions_restarted_without_a_site", ()),
        (NeighboursOnly, "test_completed_sessions", ("p2p",)),
        (NeighboursOnly, "test_the_promise_is_the_bound", ()),
        (SharedMask, "test_completed_sessions", ("star",)),
        (SharedMask, "test_sessions_with_one_loss", ("p2p",)),
        (PromisesLess, "test_the_promise_is_the_bound", ()),
    ],
)
def test_a_leak_is_found(monkeypatch, session, test, arguments):
    with pytest.raises(AssertionError, match=r" know| would be true"):
        getattr(suite(session), test)(monkeypatch, *arguments)


def test_the_insecure_examples_fail_what_is_expected_of_a_sum(monkeypatch):
    class Hopeful(TestInsecureMasked):
        def expected(self, result, coalition):
            return KnowledgeSuite.expected(self, result, coalition)

    with pytest.raises(AssertionError, match=r"server knows \['a'"):
        Hopeful().test_completed_sessions(monkeypatch, "p2p")

    class Ring(TestInsecureMasked):
        component = insecure_aggregators()[1]

        def rows(self, result, coalition, basis):
            return ()

        def expected(self, result, coalition):
            return KnowledgeSuite.expected(self, result, coalition)

    with pytest.raises(AssertionError, match=r"server knows|server\+b knows"):
        Ring().test_completed_sessions(monkeypatch, "p2p")


def test_more_in_the_state_is_found_where_it_says_more(monkeypatch):
    suite(InItsState).test_completed_sessions(monkeypatch, "p2p")


def test_what_is_overlooked_is_found_by_the_control(monkeypatch):
    class Blind(PairwiseSuite):
        def rows(self, result, coalition, basis):
            return ()

        def play(self, *arguments, **options):
            result, basis = super().play(*arguments, **options)
            for p in result.transcript.passages:
                if "values" in p.message.body:
                    p.message.body.pop("values")
            return result, basis

    with pytest.raises(AssertionError, match="all together know only"):
        suite(Pairwise, Blind).test_all_parties_together_know_everything(monkeypatch)
    suite(Pairwise).test_all_parties_together_know_everything(monkeypatch)


def test_an_expansion_that_was_not_replaced_is_noticed(monkeypatch):
    class Forgets(PairwiseSuite):
        def aggregator(self, monkeypatch, basis):
            return Pairwise

    with pytest.raises(AssertionError, match="has not been replaced"):
        suite(Pairwise, Forgets).test_completed_sessions(monkeypatch, "p2p")


def test_an_aggregator_that_aborts_is_judged_by_what_it_let_out(monkeypatch):
    """A ring without masks: whoever gets the running sum of an aborted attempt knows it."""

    class Bare(Session):
        guarantees = Guarantees((SERVER,), (), (), 0, 0, 0, "none")

        @property
        def fields(self):
            return (WireField("ring", "values", "int64", (self.value.length,), 8 * self.value.length, "clear", "running sum"),)

        def coordinate(self, ctx):
            outcome = yield Relay("ring", ctx.cohort)
            if outcome.body is None:
                raise RoundAborted("broken")
            return Sum(outcome.body["values"], outcome.visited)

        def handle(self, state, message, ctx):
            return {}, {"values": message.body.get("values", 0) + ctx.contribution().astype(np.int64)}

    class Last(PairwiseSuite):
        """Only the last hop is lost."""

        def aggregator(self, monkeypatch, basis):
            return Bare

        def faults(self, patch):
            yield {"site": "d", "stage": "ring", "do": "drop-reply", "attempt": 1}

        def rows(self, result, coalition, basis):
            return ()

    with pytest.raises(AssertionError, match="at most, for it was aborted"):
        suite(Bare, Last).test_sessions_with_one_loss(monkeypatch, "p2p")


def test_it_builds_an_aggregator_by_default(monkeypatch):
    made = type("Plain", (KnowledgeSuite,), {"component": insecure_aggregators()[0]})().aggregator(monkeypatch, Basis("ab", 4))
    assert isinstance(made, Aggregator)

"""What follows from sums over sets of sites; views as bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import ConfigError
from pppml_core.evidence.sums import combination, eliminated, flat_of_step, flat_of_total, sights_of
from pppml_core.evidence.view import decode_view, encode_view
from pppml_core.federation.pipeline import Pipeline, contribution_layout
from pppml_core.interfaces.attack import AdversaryView, Seen, Sight, Vantage
from pppml_core.registry import Registry
from pppml_core.values import TensorSpec
from pppml_core.wire.messages import Message

SITES = ("a", "b", "c", "d")
SHARED = (TensorSpec("w", (2, 3)), TensorSpec("v", (4,)))


@pytest.fixture(scope="module")
def pipeline():
    from pppml_core.config import resolve
    from pppml_core.federation.assembly import Assembly

    registry = Registry.only()
    parts = Assembly.build(resolve({"task": "tiny"}, registry=registry), registry)
    privacy = parts.mechanism.plan(parts.privacy_setting({"site_1": 1, "site_2": 1, "site_3": 1}))
    return Pipeline(contribution_layout(SHARED, metrics=True), (1.0, 2.0), 16, 40, privacy)


@pytest.fixture(scope="module")
def sites(pipeline):
    """Each site's update, weight and contribution."""
    generator = np.random.default_rng(3)
    out = {}
    for number, site in enumerate(SITES):
        update = {t.name: generator.normal(0, 0.2, t.shape).astype(np.float32) for t in SHARED}
        values, saturated = pipeline.encode(update, 10 + 10 * number, {"loss": 1.0}, generator)
        assert saturated == 0
        out[site] = (update, 10 + 10 * number, values.astype(np.int64))
    return out


def over(sites, names):
    return frozenset(names), sum(sites[s][2] for s in names)


def near(sight, sites):
    """The mean of the updates themselves, within one step of the grid a site."""
    total = sum(sites[s][1] for s in sight.sites)
    assert sight.weight == pytest.approx(total, abs=2e-3)
    for name, limit in (("w", 1.0), ("v", 2.0)):
        expected = sum(sites[s][1] / total * sites[s][0][name].astype(float) for s in sight.sites)
        smallest = min(sites[s][1] for s in SITES) / 40
        np.testing.assert_allclose(sight.update[name], expected, atol=1.01 * len(sight.sites) * limit / 32767 / smallest)
        assert sight.update[name].dtype == np.float32


def test_a_sum_is_a_mean_update_and_its_weight(pipeline, sites):
    for names in ("a", "bd", "abcd"):
        held, total = over(sites, names)
        (sight,) = sights_of(pipeline, [(held, flat_of_total(pipeline, total))], (), {}, SITES)
        assert sight.sites == tuple(names)
        near(sight, sites)
        mean, _, weight = pipeline.decode(total)
        assert sight.weight == weight
        for name, array in mean.items():
            np.testing.assert_allclose(sight.update[name], array, rtol=1e-6)


def test_the_members_own_part_is_subtracted(pipeline, sites):
    held, total = over(sites, "abcd")
    own = {s: sites[s][2] for s in SITES}
    (sight,) = sights_of(pipeline, [(held, flat_of_total(pipeline, total))], ("server", "a", "c", "d"), own, SITES)
    assert sight.sites == ("b",)
    near(sight, sites)
    assert sights_of(pipeline, [(held, flat_of_total(pipeline, total))], SITES, own, SITES) == ()
    with pytest.raises(ConfigError, match="what c itself added to the sum was not recorded") as caught:
        sights_of(pipeline, [(held, flat_of_total(pipeline, total))], ("c",), {"a": own["a"]}, SITES)
    assert "run.transcript: secrets" in str(caught.value)


def test_sums_are_taken_apart(pipeline, sites):
    known = [(held, flat_of_total(pipeline, total)) for held, total in (over(sites, n) for n in ("abcd", "bc", "abcd", "b"))]
    found = sights_of(pipeline, known, (), {}, SITES)
    assert [s.sites for s in found] == [("b",), ("c",), ("b", "c"), ("a", "d"), ("a", "b", "c", "d")]
    for sight in found:
        near(sight, sites)


def test_two_models_give_the_sum(pipeline, sites):
    weights = {t.name: np.ones(t.shape, np.float32) for t in SHARED}
    held, total = over(sites, "abc")
    mean, _, examples = pipeline.decode(total)
    after = {n: w + mean[n] for n, w in weights.items()}
    flat = flat_of_step(pipeline, weights, after, examples)
    np.testing.assert_allclose(flat, flat_of_total(pipeline, total), atol=1e-6)
    (sight,) = sights_of(pipeline, [(held, flat)], ("a", "c"), {s: sites[s][2] for s in SITES}, SITES)
    assert sight.sites == ("b",)
    near(sight, sites)


SETS = st.lists(st.frozensets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(SETS)
def test_elimination_finds_what_follows_and_nothing_else(sets):
    """Against numpy's rank: a set follows exactly if its row adds nothing; every site alone that follows is found."""
    order = "abcde"

    def rank(rows):
        return np.linalg.matrix_rank(np.array([[s in one for s in order] for one in rows], float))

    found = eliminated(sets, order)
    for one, factors in found.items():
        assert rank([*sets, one]) == rank(sets)
        for site in order:
            assert sum(f for i, f in factors.items() if site in sets[i]) == (site in one)
    for site in order:
        follows = rank([*sets, frozenset(site)]) == rank(sets)
        assert (frozenset(site) in found) == follows


@settings(max_examples=200, deadline=None)
@given(SETS, st.frozensets(st.sampled_from("abcde")))
def test_a_sum_is_put_together_where_it_follows(sets, wanted):
    order = "abcde"
    matrix = np.array([[s in one for s in order] for one in [*sets, wanted]], float)
    factors = combination(sets, wanted, order)
    assert (factors is not None) == (np.linalg.matrix_rank(matrix) == np.linalg.matrix_rank(matrix[:-1]))
    for site in order if factors is not None else ():
        assert sum(f for i, f in factors.items() if site in sets[i]) == (site in wanted)


def test_models_are_not_looked_at_where_the_sum_follows_exactly(pipeline, sites):
    held, total = over(sites, "abc")
    wrong = (held, 1.01 * flat_of_total(pipeline, total))
    exact = [(s, flat_of_total(pipeline, t)) for s, t in (over(sites, "ab"), over(sites, "c"))]
    for sight in sights_of(pipeline, exact, (), {}, SITES, wrong):
        near(sight, sites)
    (alone,) = sights_of(pipeline, [], (), {}, SITES, wrong)
    with pytest.raises(AssertionError):
        near(alone, sites)


def test_a_view_goes_through_bytes():
    weights = {"w": np.arange(600, dtype=np.float32).reshape(20, 30), "s": np.float32([1.5])}
    messages = [
        Message(
            b"r" * 16, 2, 1, "open", "open", "server", site, {"weights": {n: a.copy() for n, a in weights.items()}, "sha256": b"h" * 32}
        )
        for site in SITES
    ]
    seen = Seen(
        2,
        weights,
        {"w": weights["w"] + 1, "s": weights["s"]},
        SITES,
        (Sight(("a", "b"), {"w": weights["w"]}, 12.5),),
        tuple(messages),
        {"a": {"secret": b"k" * 400, "shares": {"b": [b"x", None, 2, {"deep": True}]}, "empty": {}}},
    )
    links = frozenset([("a", "b"), ("server", "c")])
    view = AdversaryView(Vantage("server+site:a", True, frozenset("a"), frozenset("b"), links, True), (seen, seen))
    data = encode_view(view)
    back = decode_view(data)
    assert encode_view(back) == data
    assert back.vantage == view.vantage
    for one, other in zip(view.rounds, back.rounds, strict=True):
        assert (other.round, other.cohort, other.secrets) == (one.round, one.cohort, one.secrets)
        assert [(s.sites, s.weight) for s in other.sights] == [(s.sites, s.weight) for s in one.sights]
        for mine, theirs in ((one.weights, other.weights), (one.after, other.after), (one.sights[0].update, other.sights[0].update)):
            assert mine.keys() == theirs.keys()
            assert all(np.array_equal(mine[n], theirs[n]) and mine[n].dtype == theirs[n].dtype for n in mine)
        assert [(m.run, m.round, m.attempt, m.kind, m.stage, m.sender, m.recipient) for m in other.messages] == [
            (m.run, m.round, m.attempt, m.kind, m.stage, m.sender, m.recipient) for m in one.messages
        ]
        assert all(np.array_equal(m.body["weights"]["w"], weights["w"]) for m in other.messages)
    # Many copies of one array, and its successor: two are written.
    assert len(data) < 3 * weights["w"].nbytes + 4000


def test_an_empty_view_goes_through_bytes():
    view = AdversaryView(Vantage("public", public=True), ())
    assert decode_view(encode_view(view)) == view


def test_texts_of_equal_bytes_and_other_forms_stay_apart():
    one, other = np.arange(128, dtype=np.int32), np.arange(128, dtype=np.int32).view(np.float32)
    secrets = {"a": {"i": one, "f": other, "r": one.reshape(2, 64), "b": one.tobytes()}}
    (seen,) = decode_view(encode_view(AdversaryView(Vantage("x"), (Seen(1, {}, {}, (), (), (), secrets),)))).rounds
    held = seen.secrets["a"]
    assert [held[n].dtype.str for n in "ifr"] == ["<i4", "<f4", "<i4"]
    assert held["r"].shape == (2, 64)
    assert held["b"] == one.tobytes()
    assert all(np.array_equal(held[n].ravel().view(np.int32), one) for n in "ifr")

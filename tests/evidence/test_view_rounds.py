"""Views of rounds that did not go smoothly, of other rules and mechanisms, and of sums held in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import pppml_core as pppml
from pppml_core.engines.rehearsal import Rehearsal, numbers_for
from pppml_core.errors import ConfigError
from pppml_core.evidence.recording import Passage, Recorder, Recording
from pppml_core.evidence.vantage import read_vantage
from pppml_core.evidence.view import coalition, read_view, seen_of
from pppml_core.federation.pipeline import Pipeline, contribution_layout
from pppml_core.federation.secret_record import SecretRecord
from pppml_core.registry import Registry
from pppml_core.values import TensorSpec
from pppml_core.wire.messages import SERVER, Message

REGISTRY = Registry.discover()
SITES = ("site_1", "site_2", "site_3", "site_4")
ALL = frozenset(SITES)
RING = {"use": "cyclic-he", "rings": 1, "backend": {"use": "tenseal"}}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def go(tmp_path):
    """``go(**sections)``: a run of one round over four sites, and a function from a vantage to its last round."""

    def made(**sections: Any) -> Any:
        run = {"rounds": 1, "seed": 4, "transcript": "secrets", **sections.pop("run", {})}
        given = {"task": {"use": "tiny", "sites": 4}, "training": {"steps": 1}, "registry": REGISTRY, **sections}
        done = pppml.Experiment(run=run, **given).run(tmp_path / "r", reporters=False, report=False)

        def seen(vantage: str, round: int = 0) -> Any:
            return read_view(done.folder, done._assembly, read_vantage(vantage, SITES), round or run["rounds"]).last

        return done, seen

    return made


def lost(*sites: str, stage: str, times: int = 1, round: int = 1) -> dict[str, Any]:
    return {"use": "local", "faults": [{"site": s, "stage": stage, "round": round, "do": "drop", "times": times} for s in sites]}


def sets(seen: Any) -> set[frozenset[str]]:
    return {frozenset(s.sites) for s in seen.sights}


def test_a_site_lost_after_masks_were_agreed_is_in_no_sum(go):
    run, seen = go(aggregator="secagg-plus", engine=lost("site_2", stage="mask"))
    assert run.result["survivors"]["1"] == ["site_1", "site_3", "site_4"]
    left = ALL - {"site_2"}
    assert sets(seen("server")) == {left}
    assert sets(seen("server+site:site_2")) == {left}, "its own part is not in the sum, and it has none to subtract"
    assert sets(seen("server+site:site_1")) == {left - {"site_1"}}
    assert sets(seen("server+site:site_1+site:site_3")) == {frozenset(["site_4"])}
    assert sets(seen("public")) == {left}


def test_the_attempts_of_a_round_are_looked_at_together(go):
    """A ring breaks off before anything is released, and is walked again with fresh keys: both attempts are seen, each with its own."""
    run, seen = go(aggregator=RING, engine=lost("site_4", stage="confirm"), run={"retries": 1})
    stages = [(p.message.attempt, p.message.stage) for p in Recording(run.folder).passages(round=1, kinds=["session"])]
    assert {number for number, _ in stages} == {1, 2}
    assert run.result["survivors"]["1"] == list(SITES)
    record = SecretRecord(run.folder / "sites" / "site_1")
    one, two = record.states(1, 1), record.states(1, 2)
    assert one["hop"] != two["hop"]
    server = SecretRecord(run.folder / "sites" / SERVER)
    assert server.states(1, 1)["hop"] != server.states(1, 2)["hop"]
    assert sets(seen("server")) == {ALL}
    assert sets(seen("server+site:site_1+site:site_3")) == {frozenset(["site_2"]), frozenset(["site_4"]), frozenset(["site_2", "site_4"])}
    # Of the first attempt nothing was released: its ciphertexts alone say nothing to two sites that are no neighbours of the key's holder.
    assert sets(seen("neighbours:site_1")) == {frozenset(["site_1", "site_3"])}


def test_what_an_earlier_attempt_showed_stays_seen(go):
    """Two of four sites answer, too few; the next attempt is without one of them, whose update the server has had since the first."""
    faults = [{"site": s, "stage": "contribute", "round": 1, "attempt": 1, "do": "drop"} for s in ("site_3", "site_4")]
    faults.append({"site": "site_1", "stage": "open", "round": 1, "attempt": 2, "do": "drop"})
    run, seen = go(aggregator="plain", engine={"use": "local", "faults": faults}, run={"min_cohort": 3, "retries": 1})
    assert run.result["survivors"]["1"] == ["site_2", "site_3", "site_4"]
    found, truth = seen("server"), _means(run, 1)
    assert found.cohort == ("site_2", "site_3", "site_4")
    assert sets(found) == {*map(frozenset, zip(SITES, strict=True)), ALL - {"site_1"}}
    for name, update in truth(["site_1"]).items():
        np.testing.assert_allclose(found.of("site_1").update[name], update, rtol=2e-7, atol=1e-9)
    assert found.of("site_1").weight == pytest.approx(24, rel=1e-3)


def test_a_smaller_cohort_is_announced_where_a_site_does_not_come(go):
    run, seen = go(aggregator="plain", engine=lost("site_3", stage="open", times=9))
    assert run.result["survivors"]["1"] == ["site_1", "site_2", "site_4"]
    found = seen("server")
    assert found.cohort == ("site_1", "site_2", "site_4")
    assert sets(found) == {*(frozenset([s]) for s in found.cohort), frozenset(found.cohort)}
    assert sets(seen("site:site_3")) == {frozenset(found.cohort)}  # it is sent the models to score


def test_a_site_outside_the_drawn_cohort(go):
    """One site is drawn a round. Who never is hears nothing of the first round, and of the second the model that all are asked to keep."""
    run, seen = go(aggregator="plain", run={"cohort": 1, "rounds": 2, "metrics": "none"})
    first, second = (frozenset(run.result["survivors"][r]) for r in "12")
    assert len(first) == len(second) == 1
    assert sets(seen("server")) == sets(seen("public")) == {second}
    outside = min(ALL - first - second)
    found = seen(f"site:{outside}", 1)
    assert (found.messages, found.sights, dict(found.weights), dict(found.after)) == ((), (), {}, {})
    assert frozenset(found.cohort) == first
    found = seen(f"site:{outside}", 2)
    assert {m.kind for m in found.messages} == {"evaluate", "reply"}
    assert (found.sights, dict(found.weights)) == ((), {})
    assert all(np.array_equal(found.after[n], a) for n, a in seen("public").after.items())


@pytest.mark.parametrize(
    ("optimizer", "plain"), [({"use": "sgd"}, True), ({"use": "sgd", "momentum": 0.5}, False), ({"use": "adam"}, False)]
)
def test_models_give_updates_only_where_the_server_adds_the_mean(go, optimizer, plain):
    _, seen = go(aggregator="secagg-plus", personalization={"use": "fedavg", "server_optimizer": optimizer})
    assert sets(seen("public")) == ({ALL} if plain else set())
    assert sets(seen("server")) == {ALL}
    assert seen("public").weights.keys() == seen("public").after.keys() != set()


def test_scores_in_a_sum_are_not_updates(go):
    run, seen = go(aggregator="secagg-plus", run={"metrics": "sum"})
    assert any(p.message.kind == "metrics" for p in Recording(run.folder).passages(round=1))
    assert sets(seen("server")) == {ALL}
    assert any(m.kind == "metrics" for m in seen("server").messages)
    assert sets(seen("server+site:site_1+site:site_2+site:site_3")) == {frozenset(["site_4"])}


def test_nothing_is_summed(go):
    _, seen = go(personalization="local-only")
    found = seen("server+site:site_1")
    assert (found.sights, dict(found.secrets)) == ((), {})
    assert found.messages


def test_noise_of_the_server_comes_after_what_it_sees(go):
    """``placement: server``: the server reads updates without noise, anybody else the sum with it."""
    privacy = {"use": "dp-sgd", "clip": 1.0, "noise_multiplier": 1.0, "placement": "server"}
    sgd = {"steps": 1, "batch_size": 8, "optimizer": {"use": "sgd", "lr": 0.5}}
    run, seen = go(aggregator="plain", privacy=privacy, training=sgd)
    truth = _means(run, 1)
    for sight in seen("server").sights:
        for name, update in truth(sight.sites).items():
            np.testing.assert_allclose(sight.update[name], update, rtol=2e-7, atol=1e-9)
    (released,) = seen("public").sights
    noise = np.concatenate([(released.update[n] - u).ravel() for n, u in truth(SITES).items()])
    size = np.concatenate([u.ravel() for u in truth(SITES).values()])
    assert frozenset(released.sites) == ALL
    assert released.released
    assert not any(sight.released for sight in seen("server").sights)
    # A link shows one site's update as it is, and others in what is published, also when that one is taken off.
    assert {s.sites: s.released for s in seen("link:server-site_3").sights} == {
        ("site_3",): False,
        ("site_1", "site_2", "site_4"): True,
        SITES: True,
    }
    # One clip of noise on each of hundreds of coordinates, against updates of one clip in all.
    assert np.linalg.norm(noise) > 3 * np.linalg.norm(size)


def _means(run: Any, round: int) -> Any:
    """Mean updates of sites by the pipeline itself, from recorded contributions."""
    parts = run._assembly
    terms = next(p.message.body["terms"] for p in Recording(run.folder).passages(round=round, kinds=["open"]))
    sizes = {s.slug: len(parts.load(s.slug).train) for s in parts.task.sites()}
    pipeline = parts.pipeline(round, tuple(terms["ranges"]), terms["max_weight"], parts.mechanism.plan(parts.privacy_setting(sizes)))
    held = {s: SecretRecord(run.folder / "sites" / s).contribution(round).astype(np.int64) for s in sizes}
    return lambda sites: pipeline.decode(sum(held[s] for s in sites))[0]


# -- in memory -----------------------------------------------------------------------------------------------------------------------------


def _pipeline() -> Pipeline:
    from pppml_core.config import resolve
    from pppml_core.federation.assembly import Assembly

    parts = Assembly.build(resolve({"task": "tiny"}, registry=REGISTRY), REGISTRY)
    privacy = parts.mechanism.plan(parts.privacy_setting({"site_1": 1, "site_2": 1, "site_3": 1}))
    return Pipeline(contribution_layout((TensorSpec("w", (9,)),), metrics=True), (1.0,), 16, 10, privacy)


@pytest.mark.parametrize("topology", ["p2p", "star"])
@pytest.mark.parametrize("use", ["plain", "secagg-plus", RING])
def test_a_rehearsal_is_seen_as_a_run_is(use, topology):
    from pppml_core.config import resolve
    from pppml_core.federation.assembly import Assembly

    parts = Assembly.build(resolve({"task": "tiny", "aggregator": use}, registry=REGISTRY), REGISTRY)
    pipeline = _pipeline()
    generator = np.random.default_rng(1)
    updates = {s: generator.normal(0, 0.2, 9).astype(np.float32) for s in SITES}
    contributions = {s: pipeline.encode({"w": u}, 10, {}, generator)[0] for s, u in updates.items()}
    session = parts.aggregator.plan(pipeline.spec, SITES)
    recorder = Recorder()
    given = {s: partial(np.copy, values) for s, values in contributions.items()}
    rehearsal = Rehearsal(session, given, transcript=recorder, topology=topology, remember=True)
    summed = rehearsal.run().sum
    mean, _, _ = pipeline.decode(summed.total)

    def seen(vantage: str) -> Any:
        return seen_of(
            read_vantage(vantage, SITES),
            recorder.passages,
            session,
            pipeline,
            round=1,
            weights={"w": np.zeros(9, np.float32)},
            after=mean,
            cohort=SITES,
            states=rehearsal.remembered(),
            contributions=contributions,
            summed=summed,
        )

    for vantage in ("server", "server+site:site_1", "site:site_1+site:site_2+site:site_4", "public"):
        for sight in seen(vantage).sights:
            expected = np.mean([updates[s] for s in sight.sites], axis=0)
            np.testing.assert_allclose(sight.update["w"], expected, atol=4 / 32767)
            assert sight.weight == pytest.approx(10 * len(sight.sites))
    single = {frozenset([s]) for s in SITES}
    assert sets(seen("server")) == ({*single, ALL} if use == "plain" else {ALL})
    assert sets(seen("site:site_1+site:site_2+site:site_4")) == {frozenset(["site_3"])}
    assert sets(seen("public")) == {ALL}
    assert seen("link:site_1-site_2").weights == {}
    carried = [p for p in recorder.passages if SERVER in p.parties[1:-1]]
    assert bool(carried) == (topology == "star" and use == RING)
    if use == RING:
        assert sets(seen("server+site:site_1+site:site_3")) >= {frozenset(["site_2"]), frozenset(["site_4"])}
        assert "hop" in rehearsal.remembered()[SERVER]
    else:
        with pytest.raises(ConfigError, match="site_1 has no neighbours"):
            seen("neighbours:site_1")


def test_who_stands_beside_whom_in_a_ring():
    """The last site is before the first; one that was bridged hands nothing on; what the server hands on starts no ring."""

    def hop(sender: str, recipient: str, stage: str = "ring-1", kind: str = "session") -> Passage:
        return Passage(Message(b"r" * 16, 1, 1, kind, stage, sender, recipient, {}), (sender, recipient))

    # site_3 is never handed the sum of site_2, and the server has it go on with site_4.
    bridged = [
        hop(SERVER, "site_1"),
        hop("site_1", "site_2"),
        hop("site_2", "site_3"),
        hop(SERVER, "site_2", "reseal"),
        hop("site_2", SERVER, "reseal", "reply"),
        hop(SERVER, "site_4"),
        hop("site_4", SERVER, kind="reply"),
    ]
    around = {s: coalition(read_vantage(f"neighbours:{s}", SITES), bridged) for s in ("site_1", "site_2", "site_4")}
    assert around == {"site_1": ("site_2", "site_4"), "site_2": ("site_1", "site_4"), "site_4": ("site_1", "site_2")}
    with pytest.raises(ConfigError, match="site_3 has no neighbours"):
        coalition(read_vantage("neighbours:site_3", SITES), bridged)
    other = [hop("site_1", "site_3", "ring-2"), hop("site_3", "site_2", "ring-2"), hop("site_2", SERVER, "ring-2", "reply")]
    assert coalition(read_vantage("neighbours:site_1", SITES), bridged + other) == ("site_2", "site_3", "site_4")
    assert coalition(read_vantage("server+site:site_3+neighbours:site_2", SITES), bridged) == (SERVER, "site_1", "site_3", "site_4")
    assert coalition(read_vantage("public", SITES), bridged) == coalition(read_vantage("link:site_1-site_2", SITES), bridged) == ()


def test_numbers_of_a_rehearsal_are_remembered_only_when_asked():
    from pppml_core.config import resolve
    from pppml_core.federation.assembly import Assembly

    parts = Assembly.build(resolve({"task": "tiny", "aggregator": "secagg-plus"}, registry=REGISTRY), REGISTRY)
    session = parts.aggregator.plan(_pipeline().spec, SITES)
    rehearsal = Rehearsal(session, {s: partial(numbers_for, session.value, i) for i, s in enumerate(SITES)})
    rehearsal.run()
    assert set(map(len, rehearsal.remembered().values())) == {0}

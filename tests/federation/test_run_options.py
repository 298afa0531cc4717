"""What a run does with its options: metrics that leave or stay, cohorts, selection, early stopping, initial weights, pool, local-only."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pppml_core.builtin.configs import LocalOnlyConfig, TinyTaskConfig
from pppml_core.builtin.fedavg import LocalOnly
from pppml_core.builtin.tiny import TinyTask
from pppml_core.errors import PppmlError
from pppml_core.federation.round import draw_cohort
from pppml_core.interfaces.task import SiteData
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.evaluation import predict_examples
from pppml_core.wire.transcript import read_transcript

SITES = ["site_1", "site_2", "site_3"]


def keys(run):
    return [(r["round"], r["site"], r["split"], r["weights"]) for r in run.metrics]


def events(run, kind):
    return [e for line in (run.folder / "events.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == kind]


# -- metrics ------------------------------------------------------------------------------------------------------------------


def test_metrics_per_site_are_the_scores_of_the_model_at_each_site(go):
    run = go()
    rows = [(1, s, "validation", "global") for s in SITES] + [(2, s, "validation", "global") for s in SITES]
    assert keys(run) == rows + [(2, s, "test", "global") for s in SITES]
    model, task = run.model(), run.task
    for site in SITES:
        scores = task.score(predict_examples(model, task.load(site).test, task.spec().size))
        (row,) = [r for r in run.metrics if (r["site"], r["split"]) == (site, "test")]
        assert {m: row[m] for m in scores} == pytest.approx(scores, abs=1e-6)
        assert run.result["metrics"]["global"]["sites"][site] == pytest.approx(scores, abs=1e-6)
    assert run.result["metrics"]["global"]["mean"]["accuracy"] == pytest.approx(np.mean([r["accuracy"] for r in run.metrics[-3:]]))
    assert run.result["metrics"]["personalized"] == {"mean": {}, "sites": {}}


def test_metrics_as_a_sum_tell_the_mean_only(go, wire):
    per_site, summed = go(), go(run={"metrics": "sum", "transcript": "payloads"})
    assert keys(summed) == [(1, "all", "validation", "global"), (2, "all", "validation", "global"), (2, "all", "test", "global")]
    for row in summed.metrics:
        others = [r for r in per_site.metrics if (r["round"], r["split"]) == (row["round"], row["split"])]
        for metric in ("accuracy", "balanced_accuracy", "macro_f1", "auc"):
            assert row[metric] == pytest.approx(np.mean([r[metric] for r in others]), abs=1e-5)
    assert {tuple(m.body) for m in wire(summed, "evaluate")} == {("needs_weights",)}


def test_metrics_none_leave_no_site(go, wire):
    run = go(run={"metrics": "none", "transcript": "payloads"})
    assert list(run.metrics) == []
    assert run.result["metrics"]["global"] == {"mean": {}, "sites": {}}
    assert {tuple(m.body) for m in wire(run, "evaluate")} <= {("needs_weights",)}
    assert run.model("site_1") is not None, "a site writes its own model all the same"


def test_a_score_that_is_undefined_at_some_sites_is_the_mean_over_the_others(go):
    class OneClass(TinyTask):
        def load(self, site):
            data = super().load(site)
            if site != "site_1":
                return data
            only = ArrayExamples(data.validation.images[:1], data.validation.targets[:1], data.validation.groups[:1])
            return SiteData(data.train, only, data.test)

    per_site, summed = (go(task=OneClass(TinyTaskConfig()), run={"metrics": how}) for how in ("per-site", "sum"))
    rows = [r for r in per_site.metrics if (r["round"], r["split"]) == (2, "validation")]
    defined = [r["auc"] for r in rows if r["auc"] is not None]
    assert len(defined) == 2
    (row,) = [r for r in summed.metrics if (r["round"], r["split"]) == (2, "validation")]
    assert row["auc"] == pytest.approx(np.mean(defined), abs=1e-5)


@pytest.mark.parametrize(("every", "rounds", "due"), [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (3, 3, [3]), (9, 2, [2])])
def test_evaluate_every(go, every, rounds, due):
    run = go(run={"rounds": rounds, "evaluate_every": every})
    assert sorted({r["round"] for r in run.metrics if r["split"] == "validation"}) == due
    assert {r["round"] for r in run.metrics if r["split"] == "test"} == {rounds}


# -- cohort, selection, stopping ------------------------------------------------------------------------------------------------


def test_the_cohort_is_a_seeded_draw_that_differs_by_round(go):
    run = go(task={"use": "tiny", "sites": 6}, run={"rounds": 6, "cohort": 3})
    drawn = run.result["survivors"]
    assert all(len(cohort) == 3 for cohort in drawn.values())
    assert len({tuple(c) for c in drawn.values()}) > 2
    assert all(c == sorted(c) for c in drawn.values()), "in the task's order"
    assert go(task={"use": "tiny", "sites": 6}, run={"rounds": 6, "cohort": 3}).result["survivors"] == drawn
    assert go(task={"use": "tiny", "sites": 6}, run={"rounds": 6, "cohort": 3, "seed": 6}).result["survivors"] != drawn
    assert {r["site"] for r in run.metrics} == {f"site_{i}" for i in range(1, 7)}, "all sites are scored"


def test_every_site_is_drawn_equally_often():
    class Server:
        sites = tuple("abcdefgh")

        class parts:
            from pppml_core.randomness import Seeds

            seeds = Seeds(1)

            class config:
                class run:
                    cohort = 2

    counts = dict.fromkeys(Server.sites, 0)
    for round in range(1, 2001):
        for site in draw_cohort(Server, round):
            counts[site] += 1
    assert sum(counts.values()) == 4000
    assert all(420 < n < 580 for n in counts.values()), counts  # 500 expected, four standard deviations are 77


def best_of(run):
    values = {
        r: np.mean([row["accuracy"] for row in run.metrics if (row["round"], row["split"]) == (r, "validation")])
        for r in {row["round"] for row in run.metrics if row["split"] == "validation"}
    }
    return min(r for r, v in values.items() if v == max(values.values())), values


NOISY = {"training": {"optimizer": {"use": "sgd", "lr": 1.2}, "batch_size": 4}}


def test_best_validation_returns_that_rounds_weights(go):
    run = go(run={"rounds": 6, "select": "best-validation"}, **NOISY)
    best, values = best_of(run)
    assert best < 6, values
    assert run.result["selected_round"] == best
    assert run.result["validation"] == {"metric": "accuracy", "value": pytest.approx(values[best])}
    until_then = go(run={"rounds": best}, **NOISY)
    assert run.result["model_sha256"] == until_then.result["model_sha256"]
    assert {r["round"] for r in run.metrics if r["split"] == "test"} == {best}
    last = go(run={"rounds": 6}, **NOISY)
    assert last.result["selected_round"] == 6
    assert last.result["model_sha256"] != run.result["model_sha256"]


def test_best_validation_of_local_only_is_each_sites_state_of_that_round(go):
    run = go(personalization="local-only", run={"rounds": 6, "select": "best-validation"}, **NOISY)
    best, values = best_of(run)
    assert best < 4, f"so that the state must have been kept on purpose: {values}"
    until_then = go(personalization="local-only", run={"rounds": best}, **NOISY)
    last = go(personalization="local-only", run={"rounds": 6}, **NOISY)
    for site in SITES:
        mine, same, other = (r.model(site).state_dict() for r in (run, until_then, last))
        assert all(torch.equal(mine[n], same[n]) for n in mine)
        assert not all(torch.equal(mine[n], other[n]) for n in mine)


def test_early_stopping(go):
    run = go(run={"rounds": 30, "stop": {"metric": "accuracy", "patience": 2}}, reporters=True)
    assert run.result["rounds"] < 30
    _, values = best_of(run)
    ordered = [values[r] for r in sorted(values)]
    best = int(np.argmax(ordered))
    assert len(ordered) == best + 1 + 2, "two evaluations without improvement, then no more"
    assert "accuracy" in run.result["stopped"]
    assert run.result["selected_round"] == run.result["rounds"]


def test_a_stopped_run_stays_stopped_when_it_is_resumed(go, tmp_path):
    settings = {"run": {"rounds": 30, "stop": {"patience": 1}}}
    run = go(tmp_path / "r", **settings)
    (run.folder / "result.json").unlink()
    assert go(tmp_path / "r", **settings).result["rounds"] == run.result["rounds"]


# -- initial weights ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(go):
    run = go(run={"rounds": 1})
    return load_file(run.folder / "model.safetensors")


def test_initial_weights_from_a_file(go, weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors")
    run = go(run={"rounds": 1}, training={"epochs": 0, "init": str(tmp_path / "a.safetensors")})
    got = load_file(run.folder / "model.safetensors")
    assert all(torch.equal(got[n], weights[n]) for n in weights)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: {n: t for n, t in w.items() if n != "0.weight"}, "missing 0.weight"),
        (lambda w: {**w, "0.weight": torch.zeros(3, 3)}, "other shape: 0.weight (3, 3) for (8, 1, 3, 3)"),
        (None, "there is no file"),
        (b"not safetensors", "cannot be read"),
    ],
    ids=["missing-tensor", "other-shape", "no-file", "not-safetensors"],
)
def test_initial_weights_that_do_not_fit(go, weights, tmp_path, change, text):
    path = tmp_path / "a.safetensors"
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif change is not None:
        save_file(change(weights), path)
    with pytest.raises(PppmlError, match=re.escape(text)) as caught:
        go(training={"init": str(path)})
    assert caught.value.exit_code == 2
    assert "training.init" in str(caught.value)


# -- local state ------------------------------------------------------------------------------------------------------------------


KEPT = {"training": {"optimizer": {"use": "adam", "lr": 0.01}, "keep_optimizer": True, "epochs": 1}}


def test_a_kept_optimizer_goes_on_from_round_to_round(go):
    """Local-only with a kept optimizer and one epoch a round is plain training over as many epochs."""
    kept = go(personalization="local-only", run={"rounds": 3}, **KEPT)
    reset = go(personalization="local-only", run={"rounds": 3}, training={**KEPT["training"], "keep_optimizer": False})
    amnesia = go(personalization="local-only", run={"rounds": 3}, engine={"use": "local", "amnesia": True}, **KEPT)
    a, b, c = (r.model("site_1").state_dict() for r in (kept, reset, amnesia))
    assert not all(torch.equal(a[n], b[n]) for n in a)
    assert all(torch.equal(a[n], c[n]) for n in a)


def test_local_only_sends_nothing_of_the_update(go, wire):
    run = go(personalization="local-only", run={"transcript": "payloads"})
    assert {h.stage for h in read_transcript(run.folder)} == {"open", "train", "evaluate"}
    for message in [*wire(run, up=True), *wire(run, up=False)]:
        assert not [v for v in message.body.values() if isinstance(v, np.ndarray)]
        assert not message.body.get("weights")
    assert {tuple(sorted(m.body)) for m in wire(run, up=True)} <= {("needs_weights",), ("needs_weights", "scores"), ("done",)}
    largest = max(h.size for h in read_transcript(run.folder) if h.sender != "server")
    assert largest < 1000, "the smallest tensor of the update alone would be larger with its model"
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["contribution"] == []
    assert run.result["metrics"]["global"]["sites"] == {}
    assert set(run.result["metrics"]["personalized"]["sites"]) == set(SITES)


def test_each_local_only_site_is_trained_on_its_own_data_alone(go):
    """With one site the task's own site_1 gives the same model as among three."""
    alone = go(task={"use": "tiny", "sites": 1}, personalization="local-only")
    among = go(personalization="local-only")
    mine, same, other = alone.model("site_1").state_dict(), among.model("site_1").state_dict(), among.model("site_2").state_dict()
    assert all(torch.equal(mine[n], same[n]) for n in mine)
    assert not all(torch.equal(mine[n], other[n]) for n in mine)


def test_a_site_that_is_not_drawn_keeps_its_own_state(go):
    """In a cohort of one, a local-only site is trained in its rounds only; its score of other rounds is that of its last one."""
    run = go(personalization="local-only", run={"rounds": 6, "cohort": 1})
    drawn = {int(r): c[0] for r, c in run.result["survivors"].items()}
    for site in SITES:
        own = {r["round"]: r["auc"] for r in run.metrics if r["site"] == site and r["split"] == "validation"}
        for round in range(2, 7):
            if drawn[round] != site:
                assert own[round] == own[round - 1]


class SiteState(LocalOnly):
    """A method whose state is a random tensor drawn before the first round, and a count."""

    def init(self, model):
        return {"drawn": torch.rand(3), "rounds": 0}

    def local_update(self, model, data, gradients, state):
        update, _ = super().local_update(model, data, gradients, state)
        return update, {"drawn": state["drawn"], "rounds": state["rounds"] + 1}

    def adapt(self, model, data, gradients, state):
        with torch.no_grad():
            model[7].bias[:] = state["drawn"] + state["rounds"]
        return model


@pytest.mark.parametrize("amnesia", [False, True])
def test_a_methods_own_state_survives_and_is_seeded(go, amnesia):
    runs = [go(personalization=SiteState(LocalOnlyConfig()), engine={"use": "local", "amnesia": amnesia}) for _ in range(2)]
    biases = [{s: r.model(s)[7].bias.detach().clone() for s in SITES} for r in runs]
    for site in SITES:
        assert torch.equal(biases[0][site], biases[1][site])
        assert bool(((biases[0][site] > 2) & (biases[0][site] < 3)).all()), "two rounds were counted"
    assert not torch.equal(biases[0]["site_1"], biases[0]["site_2"])


# -- pool ---------------------------------------------------------------------------------------------------------------------------


def test_pooled_training_is_scored_per_original_site(go):
    run = go(task={"use": "tiny", "pool": True})
    assert keys(run)[-3:] == [(2, s, "test", "global") for s in SITES]
    assert run.result["survivors"] == {"1": ["pool"], "2": ["pool"]}
    plan = json.loads((run.folder / "plan.json").read_text())
    assert "Centralized" in plan["headline"]
    model, task = run.model(), TinyTask(TinyTaskConfig())
    for site in SITES:
        scores = task.score(predict_examples(model, task.load(site).test, task.spec().size))
        assert run.result["metrics"]["global"]["sites"][site] == pytest.approx(scores, abs=1e-6)


def test_pooled_training_sees_all_sites_examples(go):
    """One full-batch step on the pool is one full-batch step of all sites together."""
    step = {"steps": 1, "batch_size": 200, "optimizer": {"use": "sgd", "lr": 0.1}}
    pooled, spread = (go(task={"use": "tiny", "pool": pool}, encoding="float", training=step) for pool in (True, False))
    a, b = (load_file(r.folder / "model.safetensors") for r in (pooled, spread))
    assert all(torch.allclose(a[n], b[n], atol=1e-6) for n in a)


# -- accounts -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections", [{}, {"run": {"metrics": "sum"}}, {"personalization": "local-only"}], ids=["fedavg", "sum", "local-only"]
)
def test_seconds_and_bytes_add_up(go, sections):
    run = go(**sections)
    seconds, sizes = run.result["seconds"], run.result["bytes"]
    assert sum(seconds["by_stage"].values()) == pytest.approx(seconds["total"], rel=1e-6)
    assert all(v >= 0 for v in seconds["by_stage"].values())
    assert {"train", "evaluate", "checkpoint", "rest"} <= set(seconds["by_stage"])
    hops = read_transcript(run.folder)
    assert sizes["up"] == sum(h.size for h in hops if h.sender != "server")
    assert sizes["down"] == sum(h.size for h in hops if h.recipient != "server")
    assert sizes["by_stage"] == {s: sum(h.size for h in hops if h.stage == s) for s in {h.stage for h in hops}}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"encoding": "float"},
        {"encoding": {"bits": 8}},
        {"run": {"metrics": "sum"}},
        {"run": {"metrics": "none"}},
        {"run": {"evaluate_every": 2}},
        {"personalization": "local-only"},
        {"task": {"use": "tiny", "pool": True}},
        {"model": {"use": "tiny-net", "norm": "batch", "width": 32}},
    ],
    ids=str,
)
def test_the_plan_predicts_the_bytes_of_a_round(go, experiment, sections):
    sections = {**sections, "run": {"rounds": 4, **sections.get("run", {})}}
    plan = experiment(**sections).plan().to_dict()["bytes"]
    hops = read_transcript(go(**sections).folder)
    finals = {id(h) for h in _final(hops)}
    counted = [h for h in hops if h.round > 0 and id(h) not in finals]
    sites = len({h.sender for h in hops} - {"server"})
    up = sum(h.size for h in counted if h.sender != "server") / sites / 4
    down = sum(h.size for h in hops if h.sender == "server") / sites / 4
    assert plan["up_per_site_round"] == pytest.approx(up, rel=0.05)
    assert plan["down_per_site_round"] == pytest.approx(down, rel=0.05, abs=500)
    assert sum(plan["by_stage"].values()) == plan["up_per_site_round"]


def _final(hops):
    """The hops of the closing test evaluation: everything after the last round's own evaluation."""
    rounds = [h for h in hops if h.round == 4]
    asked = [i for i, h in enumerate(rounds) if h.stage in ("contribute", "train") and h.sender != "server" and h.kind == "reply"]
    opened = [i for i, h in enumerate(rounds) if h.stage == "open" and h.attempt == max(r.attempt for r in rounds)]
    if max(r.attempt for r in rounds) > 1:  # run.metrics: sum holds an attempt of its own
        return rounds[opened[0] :]
    evaluations = [i for i, h in enumerate(rounds) if h.stage == "evaluate" and h.sender == "server"]
    sites = len({h.sender for h in hops} - {"server"})
    return rounds[evaluations[-sites] :] if len(evaluations) > sites or not asked else rounds[asked[-1] + 1 :]


def test_run_started_tells_the_local_steps(experiment, tmp_path):
    run = experiment(reporters=["jsonl"], training={"batch_size": 10}).run(tmp_path / "r", report=False)
    (started,) = events(run, "run-started")
    assert started["steps"] == {"site_1": 3, "site_2": 3, "site_3": 3}
    assert started["sites"] == SITES

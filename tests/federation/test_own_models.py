"""Sites with a model of their own: what is scored, selected and written is one and the same, and nothing asks for a shared model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pppml_core.builtin.configs import FedAvgConfig, TinyTaskConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.tiny import TinyTask
from pppml_core.cli import main
from pppml_core.errors import ConfigError
from pppml_core.learning.arrays import sha256_of_state
from pppml_core.learning.evaluation import predict_examples
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode

SITES = ("site_1", "site_2", "site_3")
INSTALLED = Registry.discover()
METHODS = [c.name for c in INSTALLED.components("personalization") if not c.missing()]
HEAD = "7."  # of the tiny network


class OwnHead(FedAvg):
    """The head stays at the site."""

    personalizes = True
    shares_one_gradient = False
    has_global_model = False

    def __init__(self):
        super().__init__(FedAvgConfig())

    def shared(self, name, model):
        return not name.startswith(HEAD)


class Drawing(FedAvg):
    """Its adaptation draws from every global random stream, as careless code does."""

    personalizes = True

    def __init__(self):
        super().__init__(FedAvgConfig())

    def adapt(self, model, data, gradients, state):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.01 * torch.randn(p.shape) + float(np.random.normal(0, 0.01))  # noqa: NPY002
        return model


class DrawingTask(TinyTask):
    """Its scoring draws too, as a bootstrap does."""

    def score(self, predictions):
        torch.randn(3)
        np.random.normal(size=2)  # noqa: NPY002
        return super().score(predictions)


# -- what is written is what was scored -------------------------------------------------------------------------------------------


def check_scores(run):
    """The scores of the written models, computed anew, are those of the result; and those by group are of the same model."""
    task, result = run.task, run.result
    kinds = [k for k in ("global", "personalized") if result["metrics"][k]["sites"]]
    for site in SITES:
        scores = {"personalized": run.model(site)}
        if "global" in kinds:
            scores["global"] = run.model()
        by_group = json.loads((run.folder / "sites" / site / "group-scores.json").read_text())["sites"][site]["test"]
        assert sorted(by_group) == sorted(kinds)
        for kind in kinds:
            found = task.score(predict_examples(scores[kind], task.load(site).test, task.spec().size))
            assert found == result["metrics"][kind]["sites"][site], (site, kind)
            accuracy = np.average(by_group[kind]["values"], weights=by_group[kind]["counts"])
            assert accuracy == pytest.approx(found["accuracy"])
    return kinds


@pytest.mark.parametrize("name", METHODS)
def test_the_model_that_is_written_is_the_one_that_was_scored(go, name):
    sections = {"model": {"use": "tiny-net", "norm": "batch"}, "only": INSTALLED, "training": {"batch_size": 6, "optimizer": {"lr": 0.01}}}
    run = go(personalization=name, **sections)
    kinds = check_scores(run)
    rule = run._assembly.personalization
    assert kinds == [k for k, on in (("global", rule.has_global_model), ("personalized", rule.personalizes)) if on]
    own = {s: sha256_of_state({n: t for n, t in run.model(s).state_dict().items() if t.is_floating_point()}) for s in SITES}
    assert len(set(own.values())) == (3 if rule.personalizes else 1)


def test_also_where_scoring_and_adapting_draw_from_global_streams(go):
    run = go(task=DrawingTask(TinyTaskConfig()), personalization=Drawing(), training={"optimizer": {"lr": 0.02}})
    assert check_scores(run) == ["global", "personalized"]


@pytest.mark.parametrize("rule", [OwnHead(), Drawing()], ids=["own head", "drawing"])
def test_it_does_not_matter_how_often_a_model_was_evaluated(go, rule):
    """A personalized model depends on the round it is of, not on the evaluations before."""
    runs = [go(personalization=rule, run={"rounds": 4, "evaluate_every": every}) for every in (1, 4)]
    for site in SITES:
        one, other = (sha256_of_state(run.model(site).state_dict()) for run in runs)
        assert one == other


# -- without a shared model -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_heads(go):
    """With scores per site, and summed; learning so fast that the best round is not the last."""
    made = {}
    for metrics in ("per-site", "sum"):
        sections = {"run": {"rounds": 6, "metrics": metrics, "select": "best-validation"}, "training": {"optimizer": {"lr": 0.4}}}
        made[metrics] = go(personalization=OwnHead(), task={"use": "tiny", "examples": 9}, **sections)
    return made


def test_only_own_models_are_scored(own_heads):
    for metrics, sites in (("per-site", set(SITES)), ("sum", {"all"})):
        run = own_heads[metrics]
        assert {row["weights"] for row in run.metrics} == {"personalized"}
        assert {row["site"] for row in run.metrics} == sites
        assert {(row["round"], row["split"]) for row in run.metrics} == {
            *((r, "validation") for r in range(1, 7)), (run.result["selected_round"], "test")
        }  # fmt: skip
        assert run.result["metrics"]["global"] == {"mean": {}, "sites": {}}
        assert set(run.result["metrics"]["personalized"]["sites"]) == sites


def test_summed_scores_are_the_mean_of_those_per_site(own_heads):
    one, other = (own_heads[m].result["metrics"]["personalized"]["mean"] for m in ("per-site", "sum"))
    for name, value in one.items():
        assert other[name] == pytest.approx(value, abs=1e-5)
    assert own_heads["per-site"].result["model_sha256"] == own_heads["sum"].result["model_sha256"]


def test_the_best_round_is_chosen_by_own_models_and_each_site_goes_back_to_its_own_part_of_it(own_heads):
    run = own_heads["per-site"]
    means = {}
    for row in run.metrics:
        if row["split"] == "validation":
            means.setdefault(row["round"], []).append(row["accuracy"])
    means = {r: np.mean(v) for r, v in means.items()}
    chosen = run.result["selected_round"]
    assert chosen == max(means, key=means.get) != max(means), "the last round must not be the best for this test to say anything"
    assert run.result["validation"]["value"] == means[chosen]
    shared = load_file(run.folder / "model.safetensors")
    for site in SITES:
        kept = decode((run.folder / "sites" / site / f"state-{chosen:06d}").read_bytes())["personal"]
        assert set(kept) == {HEAD + "weight", HEAD + "bias"}
        own = run.model(site).state_dict()
        for name, tensor in own.items():
            assert np.array_equal(tensor.numpy(), kept[name] if name in kept else shared[name].numpy()), name
    check_scores(run)


def test_early_stopping_looks_at_own_models(go):
    run = go(personalization=OwnHead(), run={"rounds": 9, "stop": {"patience": 2}}, training={"optimizer": {"lr": 1e-6}})
    assert run.result["rounds"] == 3
    assert "did not improve for 2 evaluations" in run.result["stopped"]


def test_a_shared_model_is_refused_with_the_remedy(own_heads, tmp_path):
    run = own_heads["per-site"]
    for attempt in (run.model, lambda: run.predict(tmp_path)):
        with pytest.raises(ConfigError, match="keeps a part of the model for itself: there is no shared model") as caught:
            attempt()
        assert caught.value.exit_code == 2
        assert caught.value.hint == "name a site: site_1, site_2, site_3"
    with pytest.raises(ConfigError, match="did you mean 'site_3'"):
        run.model("site_33")


@pytest.fixture
def image(tmp_path):
    """A test image of the first site as a file."""
    pixels = TinyTask(TinyTaskConfig()).load("site_1").test.example(0)[0][0]
    path = tmp_path / "images" / "one.png"
    path.parent.mkdir()
    Image.fromarray(np.clip(pixels * 128 + 64, 0, 255).astype(np.uint8)).save(path)
    return path


def test_predicting_with_a_sites_model(own_heads, image, tmp_path):
    run = own_heads["per-site"]
    found = [run.predict(image, site=site, out=tmp_path / site, probabilities=True) for site in SITES]
    assert all(any(f.iterdir()) for f in (tmp_path / s for s in SITES))
    assert len({str(f) for f in found}) > 1 or len({f.read_bytes() for s in SITES for f in (tmp_path / s).glob("*.csv")}) > 1


@pytest.mark.skipif("fedper" not in METHODS, reason="pppml-personalization-baselines is not installed")
def test_predicting_on_the_command_line(go, image, tmp_path, capsys):
    run = go(tmp_path / "r", personalization="fedper", only=INSTALLED, run={"rounds": 1})
    asked = ["predict", str(run.folder), "--input", str(image), "-o", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "there is no shared model" in said
    assert "name a site: site_1, site_2, site_3" in said
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--site", "site_2"])
    assert not ended.value.code
    assert any((tmp_path / "out").iterdir())


def test_the_pictures_and_the_report_are_of_own_models(own_heads):
    for run in own_heads.values():
        run.write_examples(per_site=3)
        shown = np.load(run.folder / "examples.npz")
        assert set(shown["sites"]) == set(SITES)
        for site in SITES:
            mine = shown["sites"] == site
            task = run.task.load(site).test
            chosen = [i for i in range(len(task)) if i % max(1, len(task) // 8) == 0][:3]
            images = torch.stack([torch.from_numpy(task.example(i)[0]) for i in chosen])
            with torch.no_grad():
                assert shown["predictions"][mine].tolist() == run.model(site)(images).argmax(1).tolist()
        page = run.report().read_text()
        assert "personalized" in page
        assert "Traceback" not in page
        value = run.result["metrics"]["personalized"]["mean"]["accuracy"]
        assert f"{value:.3f}"[:4] in page or f"{100 * value:.1f}" in page

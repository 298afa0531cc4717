"""``task.leave_out``: a federation without some of a task's sites, however it is said; and who comes later."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pppml_core as pppml
from pppml_core.builtin.configs import FedAvgConfig, TinyTaskConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.tiny import TinyTask
from pppml_core.errors import CheckpointError, ConfigError, PlanRefused
from pppml_core.interfaces.reporter import Reporter
from pppml_core.learning.arrays import sha256_of_state
from pppml_core.registry import Registry
from pppml_core.testing.streams import random_streams
from pppml_core.wire.transcript import read_transcript

WITHOUT_2 = {"use": "tiny", "leave_out": ["site_2"]}
SITES = ["site_1", "site_3"]


# -- who takes part ---------------------------------------------------------------------------------------------------------------


def test_in_yaml_as_an_override_and_in_python(tmp_path, registry):
    (tmp_path / "c.yaml").write_text("task: {use: tiny, leave_out: [site_2]}\n")
    by_file = pppml.load(tmp_path / "c.yaml", registry=registry)
    by_override = pppml.Experiment({"task": "tiny"}, overrides=["task.leave_out=[site_2]"], registry=registry)
    in_python = pppml.Experiment(task=WITHOUT_2, registry=registry)
    assert by_file.config == by_override.config == in_python.config
    assert in_python.config.leave_out == ["site_2"]
    other = pppml.load(tmp_path / "c.yaml", ["task.leave_out=[site_1]"], registry=registry)
    assert other.config.leave_out == ["site_1"]
    assert other.changed({"task.leave_out": []}).config.leave_out == []
    assert by_file.changed({"training.batch_size": 4}).config.leave_out == ["site_2"]


@pytest.mark.parametrize("value", ["site_2", "[1]", "{site_2: true}"])
def test_it_is_a_list_of_names(registry, value):
    with pytest.raises(ConfigError, match=r"task\.leave_out"):
        pppml.Experiment({"task": "tiny"}, overrides=[f"task.leave_out={value}"], registry=registry)


def test_the_schema_knows_it_beside_every_tasks_own_settings(registry):
    branches = [b for b in pppml.schema(registry)["properties"]["task"]["anyOf"] if "properties" in b]
    assert branches
    for branch in branches:
        said = branch["properties"]["leave_out"]
        assert (said["type"], said["items"]["type"]) == ("array", "string")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["site_22"], "did you mean 'site_2'?"),
        (["elsewhere"], "the sites are site_1, site_2, site_3"),
        (["site_2", "Site 1"], "there is no site 'Site 1' to leave out"),
        (["site_1", "site_2", "site_3"], "no site is left"),
    ],
)
def test_names_that_are_no_sites_and_too_many_of_them(experiment, names, text):
    made = experiment(task={"use": "tiny", "leave_out": names}, training={"class_weights": [1.0]})
    found = made.plan().misfits
    (said,) = [f for f in found if f.startswith("task.leave_out")]
    assert text in said
    assert any("class_weights" in f for f in found), "told with what else is wrong"
    with pytest.raises(PlanRefused):
        made.run("unused", reporters=False)


def test_plan_and_run_are_those_of_the_others(go, experiment):
    plan = experiment(task=WITHOUT_2).plan().to_dict()
    assert [s["slug"] for s in plan["sites"]] == SITES
    assert list(plan["training"]["steps"]) == SITES
    run = go(task=WITHOUT_2)
    assert run.result["survivors"] == {"1": SITES, "2": SITES}
    assert {row["site"] for row in run.metrics} == set(SITES) == set(run.result["metrics"]["global"]["sites"])
    assert {h.sender for h in read_transcript(run.folder)} == {*SITES, "server"}
    assert sorted(p.name for p in (run.folder / "sites").iterdir()) == ["server", *SITES]


def test_a_left_out_site_changes_nothing_of_the_others(go, contributions):
    """A site's images, order and contribution are its own: in round 1 the others send what they send in the whole federation."""
    sections = {"run": {"rounds": 1, "transcript": "payloads"}, "encoding": {"max_weight": 30}}
    whole, part = (contributions(go(task=task, **sections), 1) for task in ("tiny", WITHOUT_2))
    assert set(part.raw) == set(SITES)
    for site in SITES:
        assert np.array_equal(part.raw[site], whole.raw[site])


def test_with_pooled_training(go, experiment):
    task = {**WITHOUT_2, "pool": True}
    assert experiment(task=task).plan().to_dict()["training"]["steps"] == {"pool": 7}, "50 examples in batches of 8"
    run = go(task=task)
    assert set(run.result["metrics"]["global"]["sites"]) == set(SITES)
    assert isinstance(run.adapt("site_2", 4), torch.nn.Module)


class Once(Reporter):
    """Ends the run when its second round begins, once."""

    struck = False

    def handle(self, event):
        if not self.struck and (event["event"], event.get("round")) == ("round-started", 2):
            self.struck = True
            raise KeyboardInterrupt


def test_the_record_of_a_run_and_its_resume(go, experiment, tmp_path):
    """The resolved config says it and gives the same sites again; a resume with other sites is refused, with the same it goes on."""
    once = Once(None)

    def start(task):
        return experiment(task=task, reporters=[once]).run(tmp_path / "r", report=False)

    with pytest.raises(KeyboardInterrupt):
        start(WITHOUT_2)
    recorded = pppml.load(tmp_path / "r" / "config.resolved.yaml", ["reporters=[jsonl]"])
    assert recorded.config.leave_out == ["site_2"]
    assert [s["slug"] for s in recorded.plan().to_dict()["sites"]] == SITES
    assert json.loads((tmp_path / "r" / "fingerprint.json").read_text())["training examples"] == {"site_1": 24, "site_3": 26}
    for other in ("tiny", {"use": "tiny", "leave_out": ["site_1"]}):
        with pytest.raises(CheckpointError, match="leave_out"):
            start(other)
    resumed = start(WITHOUT_2)
    assert resumed.result["survivors"] == {"1": SITES, "2": SITES}
    assert resumed.result["model_sha256"] == go(task=WITHOUT_2).result["model_sha256"]


# -- who comes later ----------------------------------------------------------------------------------------------------------------


class Remembering(FedAvg):
    """FedAvg that adapts for an epoch; notes which images it saw, in which order, and the state it was given."""

    personalizes = True

    def __init__(self):
        super().__init__(FedAvgConfig())
        self.seen, self.states = [], []

    def init(self, model):
        return {"fresh": True}

    def local_update(self, model, data, gradients, state):
        update, _ = super().local_update(model, data, gradients, state)
        return update, {"fresh": False}

    def adapt(self, model, data, gradients, state):
        self.states.append(dict(state))
        self.seen.append([])

        def noting(network, batch):
            self.seen[-1] += [round(float(image.double().sum()), 6) for image in batch[0]]
            return gradients(network, batch)

        data.train(model, noting, epochs=1, purpose="adapt")
        return model


@pytest.fixture(scope="module")
def later(experiment, tmp_path_factory):
    """A run without ``site_2``, and its method."""
    rule = Remembering()
    run = experiment(task=WITHOUT_2, personalization=rule).run(tmp_path_factory.mktemp("later") / "r", reporters=False, report=False)
    return run, rule


def digest(model):
    return sha256_of_state(model.state_dict())


def test_adapting_twice_gives_the_same_model_and_leaves_the_run_as_it_was(later):
    run, rule = later
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    streams = random_streams()
    one, other = run.adapt("site_2", 8), run.adapt("site_2", 8)
    assert digest(one) == digest(other) != digest(run.model())
    assert one is not other
    assert not one.training
    assert rule.seen[-1] == rule.seen[-2]
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before
    assert random_streams() == streams
    assert digest(pppml.open(run.folder, objects={"personalization": rule}).adapt("site_2", 8)) == digest(one), "and so from the folder"


def test_a_larger_draw_contains_the_smaller_and_another_draw_is_another(later):
    run, rule = later
    own = {round(float(torch.from_numpy(i).double().sum()), 6) for i in TinyTask(TinyTaskConfig()).load("site_2").train.images}
    drawn = {}
    for draw in (0, 1):
        for count in (3, 7, 25):
            run.adapt("site_2", count, draw=draw)
            drawn[draw, count] = set(rule.seen[-1])
            assert len(rule.seen[-1]) == count
    for draw in (0, 1):
        assert drawn[draw, 3] < drawn[draw, 7] < drawn[draw, 25] == own
    assert drawn[0, 7] != drawn[1, 7]
    assert digest(run.adapt("site_2", 7)) != digest(run.adapt("site_2", 7, draw=1))
    run.adapt("site_2")
    assert set(rule.seen[-1]) == own, "without a number: all"


def test_it_begins_at_the_trained_weights_without_any_sites_state(later, experiment, tmp_path):
    run, rule = later
    for site in ("site_1", "site_2"):
        run.adapt(site, 4)
        assert rule.states[-1] == {"fresh": True}
    still = Remembering()
    still.adapt = lambda model, data, gradients, state: model
    same = experiment(task=WITHOUT_2, personalization=still).run(tmp_path / "r", reporters=False, report=False)
    assert digest(same.adapt("site_2", 4)) == same.result["model_sha256"] == digest(same.model())


def test_what_cannot_be_adapted_is_told(later, go):
    run, _ = later
    for site, hint in (("site_22", "did you mean 'site_2'?"), ("elsewhere", "the sites are site_1, site_2, site_3")):
        with pytest.raises(ConfigError, match="there is no site") as caught:
            run.adapt(site)
        assert hint in str(caught.value)
    with pytest.raises(ConfigError, match="nothing is shared in this run"):
        go(task=WITHOUT_2, personalization="local-only").adapt("site_2")
    alone = go(task=WITHOUT_2)
    (alone.folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has not written its model yet"):
        alone.adapt("site_2")


INSTALLED = Registry.discover()
METHODS = [c.name for c in INSTALLED.components("personalization") if not c.missing() and c.name != "local-only"]


@pytest.mark.parametrize("name", METHODS)
def test_every_installed_method_takes_in_a_site_that_comes_later(go, name):
    """It learns its images: on what it was adapted to the loss is lower than that of the weights it began with."""
    sections = {"model": {"use": "tiny-net", "norm": "batch"}, "only": INSTALLED, "training": {"batch_size": 6}}
    run = go(task=WITHOUT_2, personalization=name, **sections)
    one, other = run.adapt("site_2", 12), run.adapt("site_2", 12)
    assert digest(one) == digest(other)
    if name in ("fedavg", "fedprox"):
        assert digest(one) == run.result["model_sha256"], "it has no personal model"
        return
    picked = run._assembly.seeds.generator("newcomer", "site_2", "draw", 0).permutation(25)[:12]
    train = TinyTask(TinyTaskConfig()).load("site_2").train
    images, targets = torch.from_numpy(train.images[picked]), torch.from_numpy(train.targets[picked])
    begun = run._assembly.factory.build(run._assembly.spec)
    begun.load_state_dict(load_file(run.folder / "model.safetensors"))
    with torch.no_grad():
        after, before = (torch.nn.functional.cross_entropy(network.eval()(images), targets) for network in (one, begun))
    assert after < before

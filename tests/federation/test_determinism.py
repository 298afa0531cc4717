"""The same settings give the same model, bit for bit, whatever ran before and however the work was spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pppml_core.builtin.configs import TinyTaskConfig
from pppml_core.builtin.tiny import TinyTask
from pppml_core.interfaces.task import SiteData
from pppml_core.learning.data.examples import ArrayExamples, dihedral
from pppml_core.learning.evaluation import predict_examples


class NoisyNet(torch.nn.Sequential):
    """A network that draws random numbers in training: dropout, and batch normalization for good measure."""

    def __init__(self):
        super().__init__(
            torch.nn.Conv2d(1, 4, 3, padding=1),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Flatten(),
            torch.nn.Linear(256, 3),
        )


class Augmented(TinyTask):
    """The tiny task with flips and turns in training."""

    def load(self, site):
        data = super().load(site)
        train = data.train
        return SiteData(ArrayExamples(train.images, train.targets, train.groups, augment=dihedral), data.validation, data.test)


class Reversed(TinyTask):
    """The tiny task with its sites the other way round."""

    def sites(self):
        return super().sites()[::-1]


@pytest.fixture(scope="module")
def reference(go):
    """The hash and the metric rows of a plain run."""
    run = go(model=NoisyNet, training={"epochs": 2})
    return run.result["model_sha256"], list(run.metrics)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"engine": {"use": "local", "amnesia": True}},
        {"engine": {"use": "local", "topology": "star"}},
        {"training": {"epochs": 2, "loader_workers": 3, "cache": False}},
        {"training": {"epochs": 2, "cache": False}},
        {"run": {"transcript": "payloads"}},
        {"run": {"metrics": "none"}},
        {"run": {"metrics": "sum"}},
        {"run": {"evaluate_every": 2}},
        {"reporters": []},
    ],
    ids=["again", "amnesia", "star", "loaders", "no-cache", "payloads", "metrics-none", "metrics-sum", "evaluate-less", "no-reporters"],
)
def test_what_must_not_change_the_model(go, reference, changes):
    run = go(**{"model": NoisyNet, "training": {"epochs": 2}, **changes})
    assert run.result["model_sha256"] == reference[0]
    if not changes.get("run", {}).keys() & {"metrics", "evaluate_every"}:
        assert list(run.metrics) == reference[1]


@pytest.mark.parametrize("changes", [{"run": {"seed": 6}}, {"training": {"epochs": 1}}, {"encoding": {"bits": 15}}], ids=str)
def test_what_must_change_the_model(go, reference, changes):
    assert go(**{"model": NoisyNet, "training": {"epochs": 2}, **changes}).result["model_sha256"] != reference[0]


def test_augmentation_is_per_example_so_loaders_do_not_matter(go):
    def sha(**training):
        return go(task=Augmented(TinyTaskConfig()), model=NoisyNet, training={"batch_size": 7, **training}).result["model_sha256"]

    augmented = sha(augment=True)
    assert sha(augment=True, loader_workers=3) == augmented
    assert sha(augment=True, loader_workers=1, cache=False) == augmented
    assert sha() != augmented, "augmentation does something"


def test_worker_processes(go, reference, tmp_path, monkeypatch):
    (tmp_path / "noisy_net.py").write_text(
        "import torch\n\n\nclass NoisyNet(torch.nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Dropout(0.5),\n"
        "                         torch.nn.Flatten(), torch.nn.Linear(256, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = go(model="noisy_net:NoisyNet", training={"epochs": 2}, engine={"use": "local", "workers": 2, "amnesia": True})
    assert run.result["model_sha256"] == reference[0]
    assert list(run.metrics) == reference[1]


def test_the_order_of_sites_does_not_matter_to_a_site(go, contributions):
    there = contributions(go(model=NoisyNet, run={"rounds": 1, "transcript": "payloads"}), 1)
    back = contributions(go(task=Reversed(TinyTaskConfig()), model=NoisyNet, run={"rounds": 1, "transcript": "payloads"}), 1)
    assert list(there.raw) == list(back.raw)[::-1]
    for site, values in there.raw.items():
        np.testing.assert_array_equal(values, back.raw[site])


def test_a_run_does_not_touch_the_global_generators_or_settings(experiment, tmp_path):
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        made = experiment(model=NoisyNet)
        made.plan()
        run = made.run(tmp_path / "a", reporters=False)
        run.model()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert torch.get_num_threads() == 2
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(1)


def test_the_state_of_the_global_generators_does_not_touch_a_run(go, reference):
    torch.manual_seed(12345)
    np.random.seed(54321)  # noqa: NPY002
    assert go(model=NoisyNet, training={"epochs": 2}).result["model_sha256"] == reference[0]


def test_evaluation_changes_no_parameter_buffer_or_generator():
    task = TinyTask(TinyTaskConfig())
    torch.manual_seed(0)
    net = NoisyNet().train()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    state = torch.get_rng_state()
    test, size = task.load("site_1").test, task.spec().size
    first, second = (predict_examples(net, test, size).probabilities for _ in range(2))
    assert np.array_equal(first, second)
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())

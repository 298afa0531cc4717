"""What would make a claim false over time: a sum noised twice, a sample used twice, images that travel in a layer's own statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import DrawnBatch, fresh
from pppml_core.interfaces.reporter import Reporter
from pppml_core.learning.gradients import plain_gradients
from pppml_dp.config import DpSgdConfig
from pppml_dp.dp_sgd import DpSgdPlan, make_sgd_plan

pytestmark = pytest.mark.usefixtures("stated_epsilon_alone")

DP = {"use": "dp-sgd", "epsilon": 6, "delta": 1e-5}


class Stop(Reporter):
    """Ends the run while a round is scored, as often as told."""

    def __init__(self, times):
        self.left = times

    def handle(self, event):
        if (event.get("round"), event.get("stage")) == (1, "evaluate") and self.left:
            self.left -= 1
            raise KeyboardInterrupt


@pytest.mark.parametrize("aggregator", ["plain", "secagg-plus"])
def test_a_server_that_is_killed_and_goes_on_never_noises_a_sum_again(experiment, tmp_path, monkeypatch, aggregator, request):
    if aggregator == "secagg-plus":
        request.getfixturevalue("secagg")
    noised, noise = [], DpSgdPlan.noise
    monkeypatch.setattr(DpSgdPlan, "noise", lambda self, values: (noised.append(1), noise(self, values))[1])
    made = experiment({**DP, "placement": "server"}, aggregator=aggregator, run={"rounds": 2}, reporters=[Stop(3)])
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            made.run(tmp_path / "r", report=False)
    run = made.run(tmp_path / "r", report=False)
    assert len(noised) == 2, "once for each of two rounds"
    assert run.result["privacy"]["spent"] <= 6


def test_what_was_spent_is_what_the_fullest_ledger_holds(experiment, tmp_path):
    made = experiment({**DP, "noise_multiplier": 3.0, "epsilon": 8.0, "placement": "local"}, reporters=[Stop(2)])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made.run(tmp_path / "r", report=False)
        for path in (tmp_path / "r" / "sites" / "site_2").glob("contribution-*"):
            path.unlink()
    run = made.run(tmp_path / "r", report=False)
    ledger = [json.loads(line) for line in (run.folder / "sites" / "site_2" / "ledger.jsonl").read_text().splitlines()]
    assert len(ledger) > 2
    plan = run._assembly.mechanism.plan(run._assembly.privacy_setting({f"site_{i}": 199 + i for i in range(1, 6)}))
    assert run.result["privacy"]["spent"] == pytest.approx(plan.spent(ledger), rel=1e-6)
    assert run.result["privacy"]["spent"] > plan.spent(ledger[:2])


@pytest.fixture
def rule(setting):
    network = torch.nn.Linear(3, 2)
    numbers = setting(coordinates=8, local_steps={"a": 4}, examples={"a": 200}, rounds=1, cohort=1)
    plan = make_sgd_plan(DpSgdConfig(noise_multiplier=1.0), numbers)
    return network, plan.gradient_rule(plain_gradients(torch.nn.functional.cross_entropy))


def batch(again=None):
    return DrawnBatch(torch.ones(2, 3), torch.tensor([0, 1]), np.ones(2), again)


def test_a_poisson_sample_pays_for_one_gradient(rule):
    network, made = rule
    first = batch(again=batch)
    made(network, first)
    with pytest.raises(PppmlError, match="two gradients of one sample"):
        made(network, first)
    made(network, fresh(first))


def test_hessian_free_draws_for_every_gradient_it_is_charged_for(experiment, tmp_path, monkeypatch):
    pytest.importorskip("pppml_perfedavg")
    drawn, sample = [], DpSgdPlan.sample
    monkeypatch.setattr(DpSgdPlan, "sample", lambda self, groups: (drawn.append(1), sample(self, groups))[1])
    random, clipped = set(), DpSgdPlan.clipped

    def noting(self, *batch):
        random.add(torch.get_rng_state().numpy().tobytes())
        return clipped(self, *batch)

    monkeypatch.setattr(DpSgdPlan, "clipped", noting)
    made = experiment(
        {**DP, "placement": "local"},
        sites=1,
        run={"rounds": 1},
        personalization={"use": "per-fedavg", "order": "hessian-free", "inner_lr": 0.1},
        model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3)),
    )
    run = made.run(tmp_path / "r", reporters=False, report=False)
    (entry,) = [json.loads(line) for line in (run.folder / "sites" / "site_1" / "ledger.jsonl").read_text().splitlines()]
    assert entry["count"] == len(drawn) == 4
    assert len(random) == 4, "dropout draws anew for each, also for the second side of the difference"


class Centred(torch.nn.Module):
    """Subtracts a running mean that it keeps itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(3))

    def forward(self, x):
        if self.training:
            self.center.mul_(0.5).add_(0.5 * x.detach().mean(0))
        return x - self.center


def test_no_image_travels_into_the_next_batch_in_a_layers_own_statistics(setting):
    network = torch.nn.Sequential(Centred(), torch.nn.Linear(3, 2))
    numbers = setting(coordinates=8, local_steps={"a": 4}, examples={"a": 200}, rounds=1, cohort=1)
    plan = make_sgd_plan(DpSgdConfig(noise_multiplier=1.0), numbers)
    made = plan.gradient_rule(plain_gradients(torch.nn.functional.cross_entropy))
    network.train()
    made(network, batch())
    assert network[0].center.tolist() == [0, 0, 0]


def test_scores_of_personalized_models_may_not_choose_what_is_released(experiment):
    made = experiment({**DP, "placement": "local"}, personalization="fedavg-finetune", run={"select": "best-validation"})
    misfits = made.plan().to_dict()["misfits"]
    assert any("scores of personalized models" in text and "run.select: last" in text for text in misfits)
    fine = experiment({**DP, "placement": "local"}, personalization="fedavg-finetune", run={"select": "last"}).plan().to_dict()["misfits"]
    assert fine == []

"""Settings that contradict each other, and what plan and accountant are told."""

import itertools

import pytest
import torch
from pydantic import ValidationError

from pppml_core.config.run_config import TrainingSection
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.training import steps_per_round
from pppml_core.testing.local_data import small_network
from pppml_personalization_baselines import config

GRADIENTS = plain_gradients(torch.nn.functional.cross_entropy)


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        (config.FineTuneConfig, ("epochs", "steps")),
        (config.DittoConfig, ("personal_epochs", "personal_steps")),
        (config.FedRepConfig, ("head_epochs", "head_steps")),
        *((c, ("adapt_epochs", "adapt_steps")) for c in (config.FedBNConfig, config.DittoConfig, config.FedPerConfig)),
        *((c, ("adapt_epochs", "adapt_steps")) for c in (config.FedRepConfig, config.APFLConfig)),
    ],
)
def test_epochs_or_steps(settings, fields):
    for field in fields:
        assert getattr(settings(**{field: 2}), field) == 2
        with pytest.raises(ValidationError):
            settings(**{field: 0})
    with pytest.raises(ValidationError, match=f"give {fields[0]} or {fields[1]}, not both"):
        settings(**dict.fromkeys(fields, 1))


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (config.FedProxConfig, {"mu": -0.1}),
        (config.FedProxConfig, {"mu": float("inf")}),
        (config.DittoConfig, {"strength": -1}),
        (config.APFLConfig, {"alpha": 1.1}),
        (config.APFLConfig, {"alpha": -0.1}),
        (config.APFLConfig, {"alpha_lr": -1}),
        (config.FedPerConfig, {"head": []}),
        (config.FedPerConfig, {"head": ""}),
        (config.FedBNConfig, {"layers": "group"}),
        (config.FineTuneConfig, {"lr": -1}),
    ],
)
def test_out_of_range(settings, values):
    with pytest.raises(ValidationError):
        settings(**values)


EXTRA = [{}, {"epochs": 1}, {"epochs": 3}, {"steps": 1}, {"steps": 9}]
SCHEDULES = [{}, {"epochs": 1}, {"epochs": 2}, {"epochs": 0}, {"steps": 0}, {"steps": 1}, {"steps": 6}]


@pytest.mark.parametrize("name", ["ditto", "fedrep"])
def test_no_gradient_is_hidden_from_the_accountant(make, training, name):
    """Over all lengths of both trainings: the real number of gradients is never above the declared one, or the plan refuses."""
    prefix = {"ditto": "personal", "fedrep": "head"}[name]
    refused = exact = 0
    for extra, schedule in itertools.product(EXTRA, SCHEDULES):
        rule = make(name, **{f"{prefix}_{k}": v for k, v in extra.items()})
        section = TrainingSection(batch_size=8, **schedule)
        misfits = rule.misfits(small_network(), {"a": 32}, section.model_dump())
        calls = 0

        def counted(model, batch):
            nonlocal calls
            calls += 1
            return GRADIENTS(model, batch)

        rule.local_update(small_network(), training(**schedule), counted, rule.init(small_network()))
        declared = rule.gradient_calls * steps_per_round(section, 32)
        if misfits:
            assert prefix in misfits[0]
            refused += 1
        else:
            assert calls <= declared, (extra, schedule)
            exact += calls == declared
    # Refused: none of the five without extra; where training makes no step, every extra one; epochs beside steps.
    assert refused == 4 * 2 + 2 * 2
    assert exact >= 13, "as long as `training`, epochs beside one epoch, steps beside one step: exact"


def test_declared_gradients(make):
    declared = {n: make(n).gradient_calls for n in ("fedavg-finetune", "fedprox", "fedbn", "ditto", "fedper", "fedrep", "apfl")}
    assert declared == {"fedavg-finetune": 1, "fedprox": 1, "fedbn": 1, "ditto": 2, "fedper": 1, "fedrep": 2, "apfl": 2}
    assert make("ditto", personal_epochs=3).gradient_calls == 4
    assert make("fedrep", head_steps=10).gradient_calls == 11


def test_what_shares_one_gradient(make):
    """Those whose shared update is FedAvg's whatever the site keeps; where personal weights take part in it, it is not."""
    admitted = {n for n in ("fedavg-finetune", "fedprox", "fedbn", "ditto", "fedper", "fedrep", "apfl") if make(n).shares_one_gradient}
    assert admitted == {"fedavg-finetune", "fedprox", "ditto", "apfl"}


@pytest.mark.parametrize("name", ["fedbn", "ditto", "fedper", "fedrep", "apfl"])
@pytest.mark.parametrize(
    ("optimizer", "words"),
    [({"use": "sgd"}, None), ({"use": "sgd", "momentum": 0.9}, "sgd with momentum"), ({"use": "adam"}, "adam")],
)
def test_another_optimizer_than_the_papers_is_named(make, name, optimizer, words):
    remarks = make(name).remarks(TrainingSection(optimizer=optimizer).model_dump())
    assert remarks == [] if words is None else any(words in r for r in remarks)


@pytest.mark.parametrize("name", ["fedavg-finetune", "fedbn", "ditto", "fedper", "fedrep", "apfl"])
def test_a_schedule_that_reaches_training_at_evaluation_is_named(make, name):
    assert any("cosine" in r for r in make(name).remarks(TrainingSection(schedule="cosine").model_dump()))

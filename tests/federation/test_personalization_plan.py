"""What the plan says of a method: which privacy mechanism can protect it, whether the data suffice, what its gradients cost."""

from __future__ import annotations

import numpy as np
import pytest

from pppml_core.api import Experiment
from pppml_core.builtin.configs import FedAvgConfig, TinyTaskConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.tiny import TinyTask
from pppml_core.errors import PlanRefused
from pppml_core.interfaces.personalization import Update
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacyStatement
from pppml_core.interfaces.task import SiteData
from pppml_core.learning.arrays import difference, snapshot
from pppml_core.learning.data.examples import Subset
from pppml_core.registry import Registry

INSTALLED = Registry.discover()
METHODS = [c.name for c in INSTALLED.components("personalization") if not c.missing()]
ONE_STEP = {"steps": 1, "optimizer": {"use": "sgd", "lr": 0.05}}


class MechanismPlan(PrivacyPlan):
    """No noise; counts the gradients of each site, where it replaces the rule."""

    constant_weight = 1

    def __init__(self, owner):
        self.owner, self.placement = owner, owner.placement

    @property
    def statement(self):
        return PrivacyStatement("counting", placement=self.placement)

    def gradient_rule(self, plain):
        if not self.owner.replaces:
            return plain
        self.owner.calls.append(calls := [])

        def counted(model, batch):
            calls.append(len(batch[0]))
            return plain(model, batch)

        return counted


class Mechanism(PrivacyMechanism):
    """A mechanism with a placement, which may bring a gradient rule of its own."""

    def __init__(self, placement="local", replaces=True):
        self.placement, self.replaces, self.calls, self.settings = placement, replaces, [], []

    def plan(self, setting):
        self.settings.append(setting)
        return MechanismPlan(self)


class Rule(FedAvg):
    """FedAvg that says of itself what a test wants."""

    def __init__(self, **says):
        super().__init__(FedAvgConfig())
        for name, value in says.items():
            if name in ("misfits", "remarks"):
                setattr(self, name, lambda *_, value=value: value)
            elif name == "shared":
                self.shared = lambda *_, value=value: value
            else:
                setattr(self, name, value)


class TwoBatches(Rule):
    """A gradient on each of two disjoint batches a step, of which the second is kept."""

    gradient_calls = batches_per_step = 2
    shares_one_gradient = False

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)

        def step(network, batches):
            gradients(network, batches[0])
            return gradients(network, batches[1])

        return Update(difference(model, start), data.train(model, step, batches_per_step=2)), state


def refused(experiment, **sections):
    return experiment(**sections).plan().misfits


def about(texts, *parts):
    """The texts that hold all of the parts."""
    return [text for text in texts if all(part in text for part in parts)]


# -- noise that comes after a site's gradient protects one gradient ---------------------------------------------------------------

#: placements whose noise is added to what a site shares, in the sum or for it.
LATER = pytest.mark.parametrize("placement", ["distributed", "server"])


@LATER
def test_one_step_of_fedavg_is_admitted_under_later_noise(experiment, placement):
    assert refused(experiment, privacy=Mechanism(placement), training=ONE_STEP) == []


@LATER
@pytest.mark.parametrize(
    ("training", "text"),
    [
        ({"steps": 2}, "'site_1' makes 2 steps a round; set training.steps: 1"),
        ({"epochs": 1}, "'site_1' makes 3 steps a round; set training.steps: 1"),
        ({"steps": 1, "optimizer": {"use": "adam", "lr": 0.01}}, "use sgd, without keep_optimizer"),
        ({"steps": 1, "keep_optimizer": True, "optimizer": {"momentum": 0.9}}, "use sgd, without keep_optimizer"),
        ({"steps": 1, "optimizer": {"weight_decay": 0.1}}, "without keep_optimizer and weight_decay"),
    ],
    ids=["two steps", "an epoch", "adam", "kept momentum", "weight decay"],
)
def test_what_is_more_than_one_plain_gradient_is_refused_with_the_remedy(experiment, training, text, placement):
    (found,) = refused(experiment, privacy=Mechanism(placement), training=training)
    assert found.startswith("training")
    assert f"{placement} noise" in found
    assert text in found
    assert refused(experiment, privacy=Mechanism("local"), training=training) == [], "each gradient has noise of its own"
    assert refused(experiment, privacy=Mechanism(placement, replaces=False), training=training) == [], "the update is protected as a whole"


@LATER
@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Rule(shares_one_gradient=False), "what it shares is no plain gradient"),
        (TwoBatches(), "it makes 2 gradients a step"),
    ],
    ids=["another rule", "two gradients"],
)
def test_other_rules_are_refused_under_later_noise(experiment, rule, why, placement):
    (found,) = refused(experiment, personalization=rule, privacy=Mechanism(placement), training=ONE_STEP)
    assert found.startswith(f"personalization: object cannot be protected by {placement} noise")
    assert why in found
    assert "use fedavg, or a mechanism with placement local" in found
    assert refused(experiment, personalization=rule, privacy=Mechanism("local"), training=ONE_STEP) == []


def rule_of(name):
    """An installed method with its defaults."""
    return INSTALLED.build("personalization", Experiment(task="tiny", personalization=name, registry=INSTALLED).config.personalization)


NET = {"use": "tiny-net", "norm": "group"}


def chosen(name):
    """The method on a network without a memory of images, as noise needs it: `fedbn` then keeps the normalization that there is."""
    return {"use": "fedbn", "layers": "all"} if name == "fedbn" else name


#: those whose gradient is made at weights of the site's own, or of more than one batch.
OTHERS = {"fedbn", "fedper", "fedrep", "per-fedavg"}
#: those that take a second gradient, for a model that stays at the site: shared is one gradient, but two are asked for.
TWO = {"apfl", "ditto"}


@LATER
@pytest.mark.parametrize("name", METHODS)
def test_which_installed_methods_later_noise_protects(experiment, name, placement):
    """What is admitted would share one plain gradient anyway; the others are refused, unless whole updates are protected."""
    rule = rule_of(name)
    if not rule.shares:
        pytest.skip("it shares nothing")
    sections = {"training": ONE_STEP, "only": INSTALLED, "model": NET, "personalization": chosen(name)}
    found = refused(experiment, privacy=Mechanism(placement), **sections)
    assert bool(about(found, f"cannot be protected by {placement} noise")) == (name in OTHERS | TWO), found
    assert rule.shares_one_gradient == (name not in OTHERS)
    assert refused(experiment, privacy=Mechanism("local"), **sections) == []
    assert refused(experiment, privacy=Mechanism(placement, replaces=False), **sections) == []


@pytest.mark.parametrize("name", [n for n in METHODS if n not in OTHERS | TWO])
def test_methods_that_later_noise_protects_share_what_fedavg_shares(experiment, name, tmp_path):
    """In every round, bit for bit, whatever the site keeps: by themselves, and where the one gradient is taken as it was made."""
    if not rule_of(name).shares:
        pytest.skip("it shares nothing")
    sections = {"training": ONE_STEP, "only": INSTALLED, "model": NET}
    for number, privacy in enumerate(("none", Mechanism("distributed"), Mechanism("server"))):
        own, plain = (
            experiment(personalization=chosen(n), privacy=privacy, **sections).run(
                tmp_path / f"{i}-{number}", reporters=False, report=False
            )
            for i, n in enumerate((name, "fedavg"))
        )
        assert own.result["model_sha256"] == plain.result["model_sha256"]


def test_all_reasons_come_together_and_with_those_of_other_sections(experiment):
    found = refused(
        experiment,
        personalization=TwoBatches(misfits=["the head is missing", "personalization.mu: too large"]),
        privacy=Mechanism("distributed"),
        training={"steps": 3, "optimizer": {"use": "adam"}},
        encoding={"range": {"nothing*": 1.0}},
        run={"cohort": 7},
    )
    for parts in (
        ("personalization: the head is missing",),
        ("personalization.mu: too large",),
        ("cannot be protected by distributed noise",),
        ("training:", "makes 3 steps"),
        ("training.optimizer:",),
        ("encoding.range:",),
        ("run.cohort: 7",),
    ):
        assert len(about(found, *parts)) == 1, (parts, found)
    assert not about(found, "personalization: personalization")


# -- Hessian-vector products ------------------------------------------------------------------------------------------------------


def test_hessian_products_are_refused_where_a_mechanism_brings_its_own_gradients(experiment):
    (found,) = refused(experiment, personalization=Rule(needs_hessian=True), privacy=Mechanism("local", replaces=True))
    assert found.startswith("personalization: ")
    assert "Hessian-vector products, which counting neither clips nor noises" in found
    assert "take an order that needs gradients only" in found
    assert refused(experiment, personalization=Rule(needs_hessian=True), privacy=Mechanism("server", replaces=False)) == []
    assert refused(experiment, personalization=Rule(needs_hessian=True)) == []
    assert refused(experiment, personalization=Rule(needs_hessian=False), privacy=Mechanism("local", replaces=True)) == []


@pytest.mark.skipif("per-fedavg" not in METHODS, reason="pppml-perfedavg is not installed")
@pytest.mark.parametrize(("order", "fits"), [("first", True), ("hessian-free", True), ("exact", False)])
def test_per_fedavg_under_a_mechanism_with_its_own_gradients(experiment, order, fits):
    rule = {"use": "per-fedavg", "order": order}
    found = refused(experiment, personalization=rule, privacy=Mechanism("local"), only=INSTALLED)
    assert bool(about(found, "Hessian-vector products")) != fits
    assert refused(experiment, personalization=rule, only=INSTALLED) == []


# -- what the data must suffice for -----------------------------------------------------------------------------------------------


class Few(TinyTask):
    """``site_2`` has only a few training examples."""

    def __init__(self, count):
        super().__init__(TinyTaskConfig())
        self.count = count

    def load(self, site):
        data = super().load(site)
        return SiteData(Subset(data.train, np.arange(self.count)), data.validation, data.test) if site == "site_2" else data


@pytest.mark.parametrize(("count", "fits"), [(1, False), (2, True), (3, True)])
def test_a_step_needs_as_many_examples_as_disjoint_batches(experiment, count, fits, tmp_path):
    made = experiment(task=Few(count), personalization=TwoBatches(), run={"rounds": 1, "cohort": 9 if not fits else None})
    if fits:
        assert made.plan().misfits == []
        assert made.run(tmp_path / "r", reporters=False, report=False).result["survivors"]["1"] == ["site_1", "site_2", "site_3"]
        return
    with pytest.raises(PlanRefused) as caught:
        made.run(tmp_path / "r", reporters=False)
    (found,) = about(caught.value.misfits, "training: site 'site_2' has 1 training examples")
    assert "2 batches that share none" in found
    assert "task.leave_out" in found
    assert about(caught.value.misfits, "run.cohort: 9"), "together with what else is wrong"


def test_the_remedy_works(experiment):
    task = {"use": "object", "leave_out": ["site_2"]}
    made = experiment(task=task, objects={"task": Few(1)}, personalization=TwoBatches())
    assert made.plan().misfits == []


# -- what it says of itself ---------------------------------------------------------------------------------------------------------


def test_a_rule_that_keeps_every_tensor_at_the_site_is_refused(experiment):
    (found,) = refused(experiment, personalization=Rule(shared=False))
    assert "it keeps every tensor of this model at the site" in found


def test_a_rule_that_makes_no_model_at_all_is_refused(experiment):
    (found,) = refused(experiment, personalization=Rule(shares=False, shared=False))
    assert "neither a shared model nor one of each site" in found


def test_remarks_are_warnings_and_refuse_nothing(experiment):
    plan = experiment(personalization=Rule(remarks=["momentum departs from the paper", "personalization.lr: above the bound"])).plan()
    assert plan.misfits == []
    warnings = plan.to_dict()["warnings"]
    assert warnings == ["personalization: momentum departs from the paper", "personalization.lr: above the bound"]
    assert all(text in str(plan) for text in ("momentum departs from the paper", "above the bound"))


def test_a_method_is_asked_with_the_sizes_and_the_settings_of_the_run(experiment):
    asked = []

    class Asked(Rule):
        def misfits(self, model, examples, training):
            asked.append((sum(p.numel() for p in model.parameters()), dict(examples), training["batch_size"], training["optimizer"]["lr"]))
            return []

        def remarks(self, training):
            asked.append(training["optimizer"]["use"])
            return []

    experiment(personalization=Asked(), training={"batch_size": 5}).plan()
    assert asked == [(2035, {"site_1": 24, "site_2": 25, "site_3": 26}, 5, 0.05), "sgd"]


# -- what gradients cost is what is charged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [{}, {"steps": 2}, {"epochs": 2, "batch_size": 5}], ids=str)
@pytest.mark.parametrize("rule", [Rule(), TwoBatches()], ids=["one", "two"])
def test_gradients_made_are_gradients_planned(experiment, rule, training, tmp_path):
    check_calls(experiment(personalization=rule, training=training, privacy=(counting := Mechanism())), counting, tmp_path)


#: settings that change how many gradients a step takes, and whether the plan knows the number or a bound of it.
VARIANTS = [
    *(({"use": name}, True) for name in METHODS),
    ({"use": "per-fedavg", "order": "hessian-free"}, True),
    ({"use": "per-fedavg", "inner_lr": 0.0}, True),
    ({"use": "ditto", "personal_epochs": 2}, True),
    ({"use": "ditto", "personal_steps": 3}, False),
    ({"use": "fedrep", "head_epochs": 2}, True),
    ({"use": "fedrep", "head_steps": 1}, False),
]


@pytest.mark.parametrize(("rule", "exactly"), VARIANTS, ids=str)
def test_gradients_that_installed_methods_make_are_those_planned(experiment, rule, exactly, tmp_path):
    if rule["use"] not in METHODS:
        pytest.skip(f"{rule['use']} is not installed")
    counting = Mechanism()
    made = experiment(
        personalization={**rule, **({"layers": "all"} if rule["use"] == "fedbn" else {})},
        privacy=counting,
        training={"batch_size": 7},
        only=INSTALLED,
        model=NET,
    )
    check_calls(made, counting, tmp_path, exactly)


def check_calls(made, counting, folder, exactly=True):
    """Each site makes in each of two rounds as many gradients as its steps times the calls of a step; every party plans for the same.

    The mechanism is asked for its rule once a site and round, so that it can count what that round's charge pays for.
    """
    planned = made.plan().to_dict()["training"]
    made.run(folder / "r", reporters=False, report=False)
    assert all(setting == counting.settings[0] for setting in counting.settings)
    setting = counting.settings[0]
    assert (planned["steps"], planned["gradient_calls"]) == (dict(setting.local_steps), setting.gradient_calls)
    counted = [len(calls) for calls in counting.calls if calls]  # (the plan asks for a rule too, and makes no gradient)
    charged = [steps * setting.gradient_calls for steps in setting.local_steps.values()] * 2
    assert counted == charged if exactly else all(made <= paid for made, paid in zip(counted, charged, strict=True))

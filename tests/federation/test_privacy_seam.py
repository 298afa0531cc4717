"""Where a privacy mechanism is asked, with what, and in which order; charges that nothing forgets; the budget that stops a run."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest
from safetensors.torch import load_file

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.engines.config import LocalConfig
from pppml_core.engines.local import LocalEngine
from pppml_core.errors import BudgetSpent, PlanRefused, RunFailed
from pppml_core.federation.ledger import Ledger
from pppml_core.interfaces.privacy import Encoding, PrivacyMechanism, PrivacyPlan, PrivacyStatement
from pppml_core.interfaces.reporter import Reporter

SITES = ("site_1", "site_2", "site_3")
LENGTH = 2035  # parameters of the tiny network
LEVELS = 2**15 - 1


#: what is always said with an epsilon of the fake mechanism, but for its placement.
CLAIM = "for the whole run (unit example, adjacency add-remove, delta 1e-05, accountant pld, placement {}, adversary: a curious server)"


class FakePlan(PrivacyPlan):
    """Notes every question, and adds what can be recognized again."""

    def __init__(self, owner, setting):
        self.owner, self.setting = owner, setting
        for name in ("placement", "constant_weight", "admits_metrics", "noise_bound", "min_survivors", "sample_rate"):
            if name in owner.options:
                setattr(self, name, owner.options[name])

    def note(self, question, array):
        self.owner.asked.append((question, array.shape, array.dtype.name))

    @property
    def statement(self):
        epsilon = self.owner.options.get("epsilon")
        return PrivacyStatement("fake", epsilon, 1e-5, "example", "add-remove", self.placement, "pld", "a curious server", {"steps": 7})

    def gradient_rule(self, plain):
        self.owner.asked.append(("gradient_rule", (), ""))
        return (lambda *batch: plain(*batch)) if self.owner.options.get("replaces") else plain

    def constrain(self, flat):
        self.note("constrain", flat)
        return np.clip(flat, -1e-3, 1e-3)

    def encoding(self, round):
        return self.owner.options.get("encoding")

    def noise(self, values):
        self.note("noise", values)
        return values + self.owner.options.get("shift", 0)

    def charge(self, round):
        return {"epsilon": 1.0} if self.owner.options.get("epsilon") else None

    def spent(self, charges):
        return float(len(charges)) if self.owner.options.get("epsilon") else None


class Fake(PrivacyMechanism):
    """A mechanism with the options a test gives."""

    def __init__(self, **options):
        self.options, self.asked, self.settings = options, [], []

    def plan(self, setting):
        self.settings.append(setting)
        return FakePlan(self, setting)


def moved(run, flat):
    return flat(run, load_file(run.folder / "model.safetensors")) - flat(run, run._assembly.initial_weights)


def test_no_mechanism_is_asked_for_noise_and_charges_nothing(go):
    run = go()
    assert not list(run.folder.rglob("ledger.jsonl"))
    assert run.result["privacy"]["mechanism"] == "none"
    assert run.result["privacy"]["epsilon"] is None


@pytest.mark.parametrize("placement", ["local", "distributed"])
def test_the_noise_of_a_site_follows_the_clip_and_is_added_to_the_integers_of_the_update_alone(go, contributions, placement):
    fake, plain = Fake(placement=placement, shift=100, noise_bound=200), Fake(placement="none")
    sections = {"run": {"rounds": 1, "transcript": "payloads"}, "training": {"steps": 1}}
    run, other = (go(privacy=f, **sections) for f in (fake, plain))
    questions = [q for q in fake.asked if q[0] != "gradient_rule"]
    assert questions == [("constrain", (LENGTH,), "float32"), ("noise", (LENGTH,), "int32")] * 3
    noisy, quiet = contributions(run, 1).raw, contributions(other, 1).raw
    for site in SITES:
        difference = noisy[site].astype(int) - quiet[site].astype(int)
        assert set(difference[:LENGTH]) == {100}
        assert set(difference[LENGTH:]) == {0}, "weight and metrics stay as they are"


@pytest.mark.parametrize(("shift", "bound", "survive"), [(300, 200, False), (200, 200, True)])
def test_noise_may_widen_a_contribution_by_its_bound_and_no_more(go, shift, bound, survive):
    fake = Fake(placement="distributed", shift=shift, noise_bound=bound)
    # A range so small that every coordinate is at its end: noise alone decides whether it is beyond.
    sections = {"privacy": fake, "encoding": {"range": 1e-7}, "run": {"rounds": 1, "on_abort": "skip"}, "training": {"steps": 1}}
    assert go(**sections).result["survivors"]["1"] == (list(SITES) if survive else [])


def test_server_noise_is_added_to_the_decoded_sum(go, flat):
    grid = Encoding(2.0, 16)
    options = {"constant_weight": 1, "encoding": grid}
    fake, plain = Fake(placement="server", shift=3000, noise_bound=1, **options), Fake(placement="none", **options)
    run, other = (go(privacy=f, run={"rounds": 1}) for f in (fake, plain))
    assert [q for q in fake.asked if q[0] == "noise"] == [("noise", (LENGTH,), "int64")]
    np.testing.assert_allclose(moved(run, flat) - moved(other, flat), 3000 * 2.0 / LEVELS / 3, atol=1e-6)


def test_the_grid_of_a_mechanism_replaces_ranges_and_bits(go, contributions, wire):
    run = go(privacy=Fake(placement="local", encoding=Encoding(0.5, 20), constant_weight=1), run={"rounds": 2, "transcript": "payloads"})
    rows = json.loads((run.folder / "manifest.json").read_text())["contribution"]
    assert {(r["range"], r["bits"], r["range_rule"]) for r in rows if r["role"] == "parameter"} == {(0.5, 20, "fixed")}
    for round in (1, 2):
        # The clip of 0.001 is this many steps of the grid, in every tensor and round alike.
        assert {int(np.abs(m.body["values"][:LENGTH]).max()) for m in wire(run, "contribute", round)} == {-(-(2**19 - 1) // 500)}


def test_a_sum_that_may_be_over_too_few_sites_is_refused_by_the_server_and_by_every_site(go):
    """`plain` tolerates the loss of all sites but one, so that a share sized for two survivors would not be enough."""
    with pytest.raises(RunFailed, match="may be over 1 of 3 sites, and its noise is sized for at least 2"):
        go(privacy=Fake(placement="distributed", min_survivors=2), run={"rounds": 1, "on_abort": "stop"})


def test_a_constant_weight_replaces_the_number_of_examples(go, contributions):
    run = go(privacy=Fake(constant_weight=1), run={"rounds": 1, "transcript": "payloads"})
    assert set(contributions(run, 1).weights.values()) == {1.0}


def test_metrics_and_saturation_leave_only_where_they_are_admitted(go, wire, experiment):
    for admitted, length in ((True, LENGTH + 4), (False, LENGTH + 1)):
        run = go(privacy=Fake(admits_metrics=admitted), run={"rounds": 1, "transcript": "payloads"})
        assert {m.body["values"].shape for m in wire(run, "contribute", 1)} == {(length,)}
        names = [c["name"] for c in json.loads((run.folder / "manifest.json").read_text())["contribution"]]
        assert ("#loss" in names, "#saturated" in names) == (admitted, admitted)
        assert "#weight" in names


def test_buffers_are_not_shared_under_a_mechanism(go):
    run = go(privacy=Fake(), model={"use": "tiny-net", "norm": "batch"}, run={"rounds": 1}, training={"batch_size": 12})
    assert not [t for t in run._assembly.shared if t.role == "buffer"]


def test_server_and_sites_plan_for_the_same_setting(go):
    fake = Fake()
    go(privacy=fake, run={"rounds": 3, "cohort": 2})
    assert len(fake.settings) >= 3
    assert all(s == fake.settings[0] for s in fake.settings)
    setting = fake.settings[0]
    assert (setting.rounds, setting.cohort, dict(setting.examples)) == (3, 2, {"site_1": 24, "site_2": 25, "site_3": 26})
    assert (setting.coordinates, setting.min_survivors, setting.sees_update) == (LENGTH, 1, ("server",))
    assert len(setting.learning_rates) == 3
    assert setting.sample_rate is None
    assert dict(setting.local_steps) == {"site_1": 3, "site_2": 4, "site_3": 4}


def test_noise_needs_integers(experiment):
    with pytest.raises(PlanRefused, match="the noise is added to integers"):
        experiment(privacy=Fake(placement="local", encoding=Encoding(1.0, 16)), encoding="float").run("unused", reporters=False)


# -- what the plan says beside a claim ----------------------------------------------------------------------------------------


class OfItsOwn(FedAvg):
    """Adapts, so that each site has a model of its own."""

    def __init__(self):
        super().__init__(FedAvgConfig())
        self.personalizes = True

    def noise_remarks(self, training):
        return [f"noise doubles at batches of {training['batch_size']}"]


def said(experiment, **sections):
    plan = experiment(**sections).plan()
    assert plan.misfits == []
    return [text for text in plan.to_dict()["warnings"] if "outside the claim" in text], str(plan)


@pytest.mark.parametrize(
    ("metrics", "where"),
    [("per-site", "each site's own leave it in the clear"), ("sum", "they leave the sites in sums"), ("none", "they stay at the sites")],
)
def test_beside_a_claim_the_plan_says_that_evaluation_metrics_are_outside(experiment, metrics, where):
    fake = Fake(epsilon=2.5, placement="local", constant_weight=1, admits_metrics=False)
    (text,), printed = said(experiment, privacy=fake, run={"metrics": metrics})
    assert text.startswith("privacy: epsilon 2.5 for the whole run (unit example, adjacency add-remove, delta 1e-05, ")
    assert "is claimed for the shared weights, as they leave a site and in every sum of them" in text
    assert f"evaluation metrics (run.metrics: {metrics}, so {where})" in text
    assert "model" not in text.partition("outside the claim")[2], "fedavg on a network without statistics leaves nothing else at a site"
    for unnoised in ("training loss", "number of training examples"):
        assert unnoised not in text
    assert "outside the claim" in " ".join(printed.split())


def test_beside_a_claim_the_plan_says_what_else_enters_the_sums_without_noise(experiment):
    (text,), _ = said(experiment, privacy=Fake(epsilon=2.5, placement="local"))
    assert "the training loss and the count of saturated coordinates, which enter the sums without noise" in text
    assert "the number of training examples, which enters the sums as a site's weight" in text


def test_a_claim_with_noise_at_the_server_does_not_speak_of_what_enters_the_sums(experiment):
    (text,), _ = said(experiment, privacy=Fake(epsilon=2.5, placement="server", constant_weight=1, admits_metrics=False))
    assert "is claimed for what the server makes of the noised sum; the sum itself, before its noise, is not covered" in text


def test_a_claim_where_nothing_is_shared_speaks_of_no_sum(experiment):
    (text,), _ = said(experiment, privacy=Fake(epsilon=2.5, placement="local"), personalization="local-only")
    assert "nothing of it is shared" in text
    assert "sum" not in text.partition("is claimed for")[2].replace("sums (", "").partition("run.metrics")[0]
    assert "training loss" not in text
    assert "its weight" not in text


def test_beside_a_claim_the_plan_says_that_personalized_models_are_outside(experiment):
    (text,), _ = said(experiment, privacy=Fake(epsilon=2.5, placement="local"), personalization=OfItsOwn())
    assert "each site's personalized model, which stays there and must not be passed on as private" in text
    assert "evaluation metrics" in text


def test_beside_a_claim_the_plan_says_that_statistics_kept_at_the_site_are_outside(experiment):
    sections = {"model": {"use": "tiny-net", "norm": "batch"}, "training": {"batch_size": 12}}
    (text,), _ = said(experiment, privacy=Fake(epsilon=2.5, placement="local"), **sections)
    assert "what each site keeps of its model ('1.running_mean', ...)" in text


@pytest.mark.parametrize("privacy", ["none", Fake(placement="local")], ids=["no mechanism", "no epsilon"])
def test_without_a_claim_nothing_is_outside_of_it(experiment, privacy):
    assert said(experiment, privacy=privacy, personalization=OfItsOwn())[0] == []


def test_the_warning_is_in_the_report(go):
    run = go(privacy=Fake(epsilon=9.0, placement="local"), personalization=OfItsOwn(), run={"rounds": 1})
    assert "each site's personalized model, which stays there" in html.unescape(run.report(run.folder / "report.html").read_text())


@pytest.mark.parametrize("replaces", [True, False])
def test_a_rule_says_what_it_makes_of_noise_where_its_gradients_are_replaced(experiment, replaces):
    warnings = experiment(privacy=Fake(replaces=replaces, placement="local"), personalization=OfItsOwn()).plan().to_dict()["warnings"]
    assert ("personalization: noise doubles at batches of 8" in warnings) == replaces


# -- the ledger ---------------------------------------------------------------------------------------------------------------


class Spying(LocalEngine):
    """Looks into the sites' ledgers at the moment a contribution leaves."""

    def __init__(self):
        super().__init__(LocalConfig())
        self.seen = []

    def connect(self, job):
        inner, seen = super().connect(job), self.seen

        class Transport:
            parallel = 1
            clock, close = inner.clock, inner.close

            def deliver(self, frames):
                from pppml_core.wire.codec import decode_message

                for site, reply in inner.deliver(frames):
                    message = decode_message(reply)
                    if message.kind == "reply" and message.stage == "contribute":
                        # A second file handle reads what is really in the file.
                        entries = Ledger(job.folder / site / "ledger.jsonl").entries()
                        seen.append((site, message.round, [e["round"] for e in entries]))
                    yield site, reply

        return Transport()


def test_the_charge_is_on_disk_before_the_contribution_leaves(go):
    spy = Spying()
    go(privacy=Fake(epsilon=9.0), engine=spy)
    assert spy.seen == [(s, r, list(range(1, r + 1))) for r in (1, 2) for s in SITES]


def test_a_charge_is_synced(go, monkeypatch):
    import os

    from pppml_core.federation import ledger

    order = []
    monkeypatch.setattr(ledger.os, "fsync", lambda fd, call=os.fsync: (order.append(os.readlink(f"/proc/self/fd/{fd}")), call(fd)))
    run = go(privacy=Fake(epsilon=9.0), run={"rounds": 1})
    assert [p for p in order if p.endswith("site_1/ledger.jsonl")] == [str(run.folder / "sites/site_1/ledger.jsonl")]


def ledgers(folder):
    return {p.parent.name: p.read_text() for p in folder.rglob("ledger.jsonl")}


def test_a_retry_sends_the_same_and_is_not_charged_again(go):
    faults = [{"site": s, "stage": "contribute", "round": 1, "attempt": 1, "do": "drop-reply"} for s in SITES]
    run = go(privacy=Fake(epsilon=9.0), engine={"use": "local", "faults": faults})
    entries = Ledger(run.folder / "sites" / "site_1" / "ledger.jsonl").entries()
    assert [e["round"] for e in entries] == [1, 2]


class Stop(Reporter):
    """Ends the run at one event."""

    def __init__(self, round, stage):
        self.at = (round, stage)

    def handle(self, event):
        if (event.get("round"), event.get("stage")) == self.at:
            self.at = None
            raise KeyboardInterrupt


class FreshNoise(FakePlan):
    """Noise that is never the same twice, as real noise is."""

    def noise(self, values):
        return values + np.random.default_rng().integers(-100, 101, values.shape).astype(values.dtype)


class FreshMechanism(Fake):
    def plan(self, setting):
        return FreshNoise(self, setting)


@pytest.mark.parametrize("stage", ["contribute", "evaluate"])
def test_resume_only_adds_to_the_ledgers(experiment, tmp_path, stage):
    fake, stop = Fake(epsilon=9.0), Stop(2, stage)
    made = experiment(privacy=fake, reporters=[stop], run={"rounds": 3})
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path / "r", report=False)
    before = ledgers(tmp_path / "r")
    assert set(before) == {"r", *SITES}
    made.run(tmp_path / "r", report=False)
    after = ledgers(tmp_path / "r")
    for name, text in before.items():
        assert after[name].startswith(text)
    assert [e["round"] for e in Ledger(tmp_path / "r" / "sites" / "site_2" / "ledger.jsonl").entries()] == [1, 2, 3]
    assert [e["round"] for e in Ledger(tmp_path / "r" / "ledger.jsonl").entries()] == [1, 2, 2, 3], "each asking is noted"


def test_fresh_noise_of_a_round_held_again_is_a_charge_of_its_own(experiment, tmp_path):
    """A site that lost its cached contribution draws other noise: that is spent too, and its own ledger stops it in time."""
    mechanism, stop = FreshMechanism(epsilon=3.0, placement="local", noise_bound=100), Stop(2, "evaluate")
    made = experiment(privacy=mechanism, reporters=["jsonl", stop], run={"rounds": 3})
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path / "r", report=False)
    for path in (tmp_path / "r" / "sites" / "site_2").glob("contribution-*"):
        path.unlink()
    run = made.run(tmp_path / "r", report=False)
    charged = [e["round"] for e in Ledger(tmp_path / "r" / "sites" / "site_2" / "ledger.jsonl").entries()]
    assert charged == [1, 2, 2]
    assert run.result["survivors"]["3"] == ["site_1", "site_3"], "site_2 has spent its three"


def test_a_torn_charge_counts_and_stays(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"round": 1})
    with open(ledger.path, "ab") as file:
        file.write(b'{"round": 2, "eps')
    ledger.append({"round": 3})
    assert ledger.entries() == [{"round": 1}, {"damaged": '{"round": 2, "eps'}, {"round": 3}]


# -- the budget ---------------------------------------------------------------------------------------------------------------


def test_a_spent_budget_stops_before_the_next_round(go, tmp_path):
    fake = Fake(epsilon=2.0)
    with pytest.raises(BudgetSpent) as caught:
        go(tmp_path / "r", privacy=fake, run={"rounds": 5})
    assert f"round 3 would bring epsilon to 3, above the claim: epsilon 2 {CLAIM.format('none')}" in str(caught.value)
    assert caught.value.exit_code == 4
    entries = Ledger(tmp_path / "r" / "sites" / "site_1" / "ledger.jsonl").entries()
    assert [e["round"] for e in entries] == [1, 2], "nothing of round 3 was made"
    with pytest.raises(BudgetSpent):
        go(tmp_path / "r", privacy=fake, run={"rounds": 5})
    assert ledgers(tmp_path / "r")["site_1"].count("\n") == 2


def test_the_statement_is_in_the_result(go):
    result = go(privacy=Fake(epsilon=2.0, placement="local")).result
    assert result["privacy"] == {
        "mechanism": "fake", "epsilon": 2.0, "delta": 1e-5, "unit": "example", "adjacency": "add-remove", "placement": "local",
        "accountant": "pld", "adversary": "a curious server", "details": {"steps": 7}, "spent": 2.0,
    }  # fmt: skip

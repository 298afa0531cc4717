"""The budget: what a ledger adds up to, when a run stops, and that nothing makes it forget."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import yaml

from pppml_core import cli
from pppml_core.errors import BudgetSpent, RunFailed
from pppml_core.testing.exact_epsilon import gaussian_epsilon
from pppml_dp.accounting import Event, epsilon
from pppml_dp.budget import Budget, composed
from pppml_dp.config import DpSgdConfig, DpUpdateConfig
from pppml_dp.dp_sgd import DpSgd, make_sgd_plan
from pppml_dp.dp_update import DpUpdate

DELTA = 1e-5
EVENT = Event("gaussian", 0.1, 1.0, 3)
BOTH = {"use": "dp-sgd", "noise_multiplier": 2.0, "epsilon": 6, "delta": DELTA, "sample_rate": 1.0}


def budget(limit, event=EVENT, rounds=5):
    return Budget(event, rounds, DELTA, epsilon([event] * rounds, DELTA), limit)


def full(z, count=1):
    """A charge without sampling, whose epsilon has a closed form."""
    return Event("gaussian", 1.0, z, count).to_charge()


@pytest.mark.parametrize("limit", [2.0, 4.0])
def test_counting_gives_the_same_answer_as_composing(limit):
    quick = budget(limit, rounds=1)
    charge = quick.charge()
    slow = [quick.spent([charge] * count) <= limit * (1 + 1e-9) for count in range(14)]
    assert [quick.affords([charge] * count) for count in range(14)] == slow
    assert True in slow
    assert False in slow


def test_charges_of_others_count():
    """A ledger may hold charges of another run over the same data: they are composed, not counted."""
    own = budget(4.0)
    other = Event("gaussian", 0.1, 0.7, 5).to_charge()
    few = [own.charge()] * 2
    assert own.affords(few)
    both = own.spent([*few, other])
    assert both == pytest.approx(epsilon([EVENT.times(2), Event("gaussian", 0.1, 0.7, 5)], DELTA))
    assert own.affords([*few, other]) == (both <= 4.0)
    assert not own.affords([*few, *[other] * 5])


@pytest.mark.parametrize("damaged", [{"damaged": '{"event": "poi'}, {}, {"event": "poisson-gaussian", "sample_rate": 0.1}, {"event": 3}])
def test_what_cannot_be_read_counts_as_the_largest_charge(damaged):
    own = Budget(Event("gaussian", 1.0, 5.0), 9, DELTA, 1.0, 9.0)
    charge = own.charge()
    assert own.spent([charge, damaged]) == pytest.approx(gaussian_epsilon([5.0, 5.0], DELTA), rel=2e-3)
    assert own.spent([charge, full(2.0), damaged]) == pytest.approx(gaussian_epsilon([5.0, 2.0, 2.0], DELTA), rel=2e-3)
    assert own.spent([damaged]) == own.spent([charge])
    assert composed([damaged], DELTA) == math.inf, "nothing is known of it"
    assert composed([full(3.0), damaged], DELTA) == pytest.approx(gaussian_epsilon([3.0, 3.0], DELTA), rel=2e-3)
    assert composed([], DELTA) == 0


@pytest.mark.parametrize(
    ("mechanism", "delta"),
    [
        (DpSgd(DpSgdConfig(epsilon=6, delta=1e-6)), 1e-6),
        (DpUpdate(DpUpdateConfig(epsilon=6, delta=1e-3)), 1e-3),
        (DpUpdate(DpUpdateConfig(preset="paper")), 1.9e-4),
    ],
)
def test_several_runs_are_composed_at_the_delta_of_the_config(mechanism, delta):
    assert mechanism.spent([full(4.0), full(3.0, 2)]) == pytest.approx(gaussian_epsilon([4.0, 3.0, 3.0], delta), rel=2e-3)


@pytest.mark.parametrize("limit", [1.0, 6.0])
@pytest.mark.parametrize("noise", ["discrete-gaussian", "skellam"])
def test_epsilon_is_solved_for_and_nearly_reached(setting, limit, noise):
    plan = make_sgd_plan(DpSgdConfig(epsilon=limit, delta=DELTA, noise=noise), setting())
    planned = plan.spent([plan.charge(r) for r in range(1, 21)])
    assert 0.985 * limit < planned <= limit
    assert plan.affords([plan.charge(1)] * 20)
    assert not plan.affords([plan.charge(1)] * 22)
    assert (plan.statement.epsilon, plan.statement.accountant) == (limit, "rdp" if noise == "skellam" else "pld")


def test_a_noise_multiplier_states_what_its_rounds_spend(setting):
    plan = make_sgd_plan(DpSgdConfig(noise_multiplier=4.0, delta=DELTA, sample_rate=1.0), setting(sample_rate=1.0))
    assert plan.statement.epsilon == pytest.approx(gaussian_epsilon([4.0] * 20, DELTA), rel=2e-3)
    assert plan.affords([plan.charge(1)] * 20)
    assert not plan.affords([plan.charge(1)] * 21)


# -- in runs ----------------------------------------------------------------------------------------------------------------------------


def ledger(folder):
    return [json.loads(line) for line in folder.read_text().splitlines()]


def affordable(limit=6.0, z=2.0):
    """Rounds within the budget, by the closed form."""
    return max(n for n in range(1, 50) if gaussian_epsilon([z] * n, DELTA) <= limit)


def test_both_stop_the_run_before_the_round_that_would_exceed_epsilon(experiment, tmp_path):
    made = experiment(BOTH, sites=2, run={"rounds": 9}, reporters=["jsonl"])
    with pytest.raises(
        BudgetSpent, match=r"round \d+ would bring epsilon to .* above the claim: epsilon 6 for the whole run \(unit example"
    ) as stopped:
        made.run(tmp_path / "r", report=False)
    assert stopped.value.exit_code == 4
    rounds = affordable()
    assert 2 < rounds < 9
    for party in (tmp_path / "r", tmp_path / "r" / "sites" / "site_1", tmp_path / "r" / "sites" / "site_2"):
        charges = ledger(party / "ledger.jsonl")
        assert [c["round"] for c in charges] == list(range(1, rounds + 1))
        assert epsilon([Event.from_charge(c) for c in charges], DELTA) <= 6


def test_the_command_ends_with_code_4_and_so_does_each_resume(tmp_path, capsys):
    config = {
        "task": {"use": "tiny", "sites": 2, "examples": 100},
        "privacy": BOTH,
        "training": {"steps": 1},
        "run": {"rounds": 9},
        "reporters": [],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "r"
    codes = []
    for line in (
        ["run", str(tmp_path / "c.yaml"), "--out", str(folder)],
        ["run", "--resume", str(folder)],
        ["run", "--resume", str(folder)],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(line)
        codes.append(ended.value.code)
        found = ledger(folder / "sites" / "site_1" / "ledger.jsonl")
        assert len(found) == affordable()
    assert codes == [4, 4, 4]
    said = capsys.readouterr()
    assert "would bring epsilon to" in said.out + said.err


def test_a_resumed_run_cannot_forget_what_a_site_was_charged(experiment, tmp_path):
    """Contributions and server are lost, as after a crash: the sites make new ones, with new noise, and are charged again until no more."""
    made = experiment(BOTH, sites=2, run={"rounds": 2, "on_abort": "stop"}, reporters=[])
    folder = tmp_path / "r"
    made.run(folder, report=False)
    before = ledger(folder / "sites" / "site_1" / "ledger.jsonl")
    assert len(before) == 2
    for _ in range(4):
        for path in ("result.json", "checkpoints"):
            target = folder / path
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        for site in (folder / "sites").iterdir():
            for kept in [p for p in site.iterdir() if p.name != "ledger.jsonl"]:
                shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        try:
            made.run(folder, report=False)
        except (BudgetSpent, RunFailed):
            break
    else:
        pytest.fail("the run was made again and again")
    after = ledger(folder / "sites" / "site_1" / "ledger.jsonl")
    assert after[:2] == before
    assert len({c["contribution"] for c in after}) == len(after) > 2
    assert epsilon([Event.from_charge(c) for c in after], DELTA) <= 6

"""A sweep that compares noised runs states what choosing by their scores costs: the composition of all of them."""

from __future__ import annotations

import json
import re

import pytest
import yaml

import pppml_core as pppml
from pppml_core.interfaces.privacy import PrivacyMechanism
from pppml_core.registry import Registry
from pppml_core.sweep_privacy import choice_notes
from pppml_core.sweep_result import SweepResult
from pppml_core.testing.exact_epsilon import gaussian_epsilon

NAMED = ("unit example", "adjacency add-remove", "delta 1e-05", "accountant pld", "placement local", "adversary: ")
CLAIM = {
    "mechanism": "dp-sgd",
    "epsilon": 6.0,
    "delta": 1e-5,
    "unit": "example",
    "adjacency": "add-remove",
    "placement": "local",
    "accountant": "pld",
    "adversary": "whoever sees it",
}
needs_dp = pytest.mark.skipif(
    not any(row.name == "dp-sgd" and row.status == "ok" for row in Registry.discover().rows()), reason="pppml-dp is not installed"
)


def charge(z, count=1):
    return {"event": "poisson-gaussian", "sample_rate": 1.0, "noise_multiplier": z, "count": count}


@pytest.fixture
def run(tmp_path):
    """A run's folder as it is left: a claim (None: none), a mechanism, and charges by ledger."""

    def write(name, claim=CLAIM, privacy=None, finished=True, **ledgers):
        folder = tmp_path / name
        folder.mkdir()
        stated = {"mechanism": "none", "epsilon": None} if claim is None else {**CLAIM, **claim}
        (folder / ("result.json" if finished else "plan.json")).write_text(json.dumps({"privacy": stated}))
        section = {"use": "dp-sgd", "epsilon": 6.0, "delta": stated.get("delta"), **(privacy or {})}
        (folder / "config.resolved.yaml").write_text(yaml.safe_dump({"privacy": section if claim is not None else {"use": "none"}}))
        for party, charges in ledgers.items():
            path = folder / "ledger.jsonl" if party == "server" else folder / "sites" / party / "ledger.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{c if isinstance(c, str) else json.dumps(c)}\n" for c in charges))
        return folder

    return write


def epsilon_in(note):
    return float(re.search(r"costs epsilon ([0-9.]+) in all \(", note)[1])


@needs_dp
def test_the_cost_is_that_of_all_ledgers_together(run):
    """Without sampling, noise multipliers z compose to one Gaussian, whose exact epsilon is the oracle."""
    folders = [
        run("a", server=[charge(5.0)] * 3, a=[charge(5.0)] * 3),
        run("b", server=[charge(4.0)] * 2, a=[charge(4.0)] * 2, b=[charge(4.0)]),
        run("c", server=[charge(10.0, count=7)]),
    ]
    (note,) = choice_notes(folders)
    assert note.startswith("Choosing among 3 runs of dp-sgd by their scores costs epsilon ")
    assert epsilon_in(note) == pytest.approx(gaussian_epsilon([5.0] * 3 + [4.0] * 2 + [10.0] * 7, 1e-5), rel=2e-3)
    assert all(words in note for words in NAMED)


@needs_dp
def test_a_charge_made_anew_at_one_site_and_a_run_that_failed_count(run):
    once = [run("a", server=[charge(5.0)] * 2, a=[charge(5.0)] * 2), run("b", server=[charge(5.0)] * 2)]
    more = [run("c", server=[charge(5.0)] * 2, a=[charge(5.0)] * 3), run("d", finished=False, server=[charge(5.0)] * 2)]
    few, many = (epsilon_in(choice_notes(folders)[0]) for folders in (once, more))
    assert few == pytest.approx(gaussian_epsilon([5.0] * 4, 1e-5), rel=2e-3)
    assert many == pytest.approx(gaussian_epsilon([5.0] * 5, 1e-5), rel=2e-3)


@needs_dp
def test_a_torn_line_counts_as_the_largest_charge(run):
    folders = [run("a", server=[charge(8.0), '{"event": "poisson-gau']), run("b", server=[charge(4.0)])]
    (note,) = choice_notes(folders)
    assert epsilon_in(note) == pytest.approx(gaussian_epsilon([8.0, 4.0, 4.0], 1e-5), rel=2e-3)


@needs_dp
def test_runs_with_other_conditions_are_stated_for_what_all_of_them_claim(run):
    other = {"placement": "distributed", "delta": 1e-6, "adversary": "whoever sees the sums"}
    (note,) = choice_notes([run("a", server=[charge(5.0)]), run("b", claim=other, server=[charge(5.0)])])
    assert "delta 1e-05" in note
    assert "placement local and distributed" in note
    assert "adversary: only those against whom each of these runs claims to hold" in note


@needs_dp
def test_units_are_not_mixed_and_runs_without_noise_are_counted(run):
    site = {"mechanism": "dp-update", "unit": "site", "adjacency": "zero-out"}
    folders = [
        run("a", server=[charge(5.0)]),
        run("b", server=[charge(5.0)]),
        run("c", claim=site, privacy={"use": "dp-update"}, server=[charge(3.0)]),
        run("d", claim=site, privacy={"use": "dp-update"}, server=[charge(3.0)]),
        run("e", claim=None),
        run("f", claim={"epsilon": "inf"}),
    ]
    example, whole, kinds, bare = choice_notes(folders)
    assert kinds.startswith("Noised runs of 2 kinds (2 of dp-sgd with unit example, 2 of dp-update with unit site): choosing among all")
    assert "2 runs of dp-sgd" in example
    assert "2 runs of dp-update" in whole
    assert "unit site, adjacency zero-out" in whole
    assert epsilon_in(whole) > epsilon_in(example)
    assert bare == "2 runs of this table are without noise: nothing bounds what choosing by their scores reveals."


@needs_dp
def test_one_run_of_each_kind_is_a_choice_too(run):
    site = {"mechanism": "dp-update", "unit": "site", "adjacency": "zero-out"}
    folders = [run("a", server=[charge(5.0)]), run("b", claim=site, privacy={"use": "dp-update"}, server=[charge(3.0)])]
    (note,) = choice_notes(folders)
    assert "costs more than any kind alone" in note


def test_a_sweep_without_noise_says_nothing_of_privacy(run):
    assert choice_notes([run("a", claim=None), run("b", claim=None), run("c", claim={"epsilon": "inf"})]) == []


def test_one_noised_run_is_no_choice_and_nothing_charged_is_nothing_released(run):
    assert choice_notes([run("a", server=[charge(5.0)]), run("b", finished=False)]) == []


def test_a_mechanism_that_is_not_installed_is_named_and_the_table_still_made(run):
    folders = [run(n, claim={"mechanism": "other"}, privacy={"use": "no-such-noise"}, server=[charge(1.0)]) for n in "ab"]
    (note,) = choice_notes(folders)
    assert note.startswith(
        "Choosing among 2 runs of other by their scores costs more privacy than one of them does; how much cannot be told"
    )
    assert "no-such-noise" in note


def test_a_mechanism_that_composes_nothing_says_so():
    assert PrivacyMechanism.spent(None, [charge(1.0)]) is None


@needs_dp
def test_a_real_sweep_says_it_below_its_table_and_in_markdown(tmp_path):
    experiment = pppml.Experiment(
        task={"use": "tiny", "sites": 2, "examples": 100},
        training={"steps": 1, "batch_size": 100, "optimizer": {"use": "sgd", "lr": 0.1}},
        privacy={"use": "dp-sgd", "epsilon": 6, "delta": 1e-5, "sample_rate": 1.0},
        run={"rounds": 2},
        reporters=[],
    )
    found = pppml.sweep(experiment, {"privacy.epsilon": [2.0, 6.0]}, seeds=[1, 2], out=tmp_path / "s")
    assert isinstance(found, SweepResult)
    assert found.failed == {}
    (note,) = [line for line in found.markdown().splitlines() if "Choosing among 4 runs of dp-sgd" in line]
    z = [
        json.loads(line)["noise_multiplier"]
        for p in found.points
        for line in (tmp_path / "s" / p / "ledger.jsonl").read_text().splitlines()
    ]
    assert len(z) == 8
    assert epsilon_in(note) == pytest.approx(gaussian_epsilon(z, 1e-5), rel=2e-3)
    assert epsilon_in(note) > 6 + 2
    assert all(words in note for words in NAMED)
    assert "Choosing among 4 runs" in (tmp_path / "s" / "table.md").read_text()

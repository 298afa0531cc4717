"""``run.metrics: sum``: scores leave in a sum over all sites of the run, or not at all; and a run never ends for want of them."""

from __future__ import annotations

import json

import pytest

from pppml_core.api import Experiment

SITES = ["site_1", "site_2", "site_3", "site_4"]
VALIDATION = ("metrics", "validation")


def fault(site, stage, round, attempt, do="drop", times=1):
    return {"site": site, "stage": stage, "do": do, "attempt": attempt, "round": round, "times": times}


@pytest.fixture
def scored(tmp_path):
    """A run of four sites whose sums bear one lost site; the first attempt of a round is its update, the next are its scores."""

    def go(*faults, **run):
        sections = {"task": {"use": "tiny", "sites": 4}, "aggregator": "secagg-plus", "training": {"steps": 1}, "reporters": ["jsonl"]}
        run = {"rounds": 3, "metrics": "sum", "seed": 5, **run}
        return Experiment({**sections, "run": run, "engine": {"use": "local", "faults": list(faults)}}).run(tmp_path / "r", report=False)

    return go


def rounds(run, split="validation"):
    """The rounds of which there are scores; whatever is there is over all sites."""
    assert {row["site"] for row in run.metrics} <= {"all"}
    return [row["round"] for row in run.metrics if row["split"] == split]


def events(run, kind):
    return [e for line in (run.folder / "events.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == kind]


def without(run):
    """What is told of rounds without scores."""
    return [e["text"] for e in events(run, "warning") if "no scores" in e["text"]]


def test_a_site_that_is_back_is_in_the_next_sum(scored):
    """One lost message costs the scores of its round at most: not those of another round, not selection, not early stopping."""
    run = scored(fault("site_4", "mask", 1, 2), on_abort="skip", select="best-validation", rounds=4)
    assert rounds(run) == [2, 3, 4]
    (told,) = without(run)
    assert told.startswith("round 1: no scores: they leave in a sum over all sites, and site_4 is missing")
    assert told.endswith("the round is left out of selection and early stopping")
    assert run.result["selected_round"] in (2, 3, 4)
    assert rounds(run, "test") == [run.result["selected_round"]]


def test_a_sum_that_was_not_opened_is_tried_again(scored):
    run = scored(fault("site_4", "mask", 1, 2))
    assert rounds(run) == [1, 2, 3]
    assert without(run) == []
    assert run.result["survivors"] == {"1": SITES, "2": SITES, "3": SITES}


def test_a_sum_that_was_opened_is_not(scored):
    """Its sites gave out their shares, and one of those was lost: these scores can not be had again, those of other rounds can."""
    run = scored(fault("site_4", "unmask", 1, 2, do="drop-reply"), select="best-validation")
    assert rounds(run) == [2, 3]
    (told,) = without(run)
    assert "site_4 is missing" in told, "the cause, not what came of it"
    assert run.result["metrics"]["global"]["mean"]["accuracy"] is not None


@pytest.mark.parametrize("stage", ["open", "evaluate", "share", "mask", "agree", "unmask"])
def test_a_run_without_one_of_its_sites_has_no_scores_and_ends_well(scored, stage):
    """The scores of rounds 2 and 3 lack site 3, whatever it does not answer; its absence stops and repeats no round."""
    first = 1 if stage == "open" else 2  # the first attempt of a round is its update
    faults = [fault("site_3", stage, round, attempt, times=9) for round in (2, 3) for attempt in range(first, 20)]
    lost = [fault("site_4", "mask", 1, 2)] if stage == "open" else []
    run = scored(*faults, *lost, select="best-validation", stop={"patience": 1}, evaluate_every=1)
    assert run.result["rounds"] == 3
    assert [len(sites) for sites in run.result["survivors"].values()] == ([4, 3, 3] if stage == "open" else [4, 4, 4])
    assert (rounds(run), rounds(run, "test")) == ([1], [])
    assert events(run, "round-aborted") == []
    assert len(events(run, "round-started")) == (5 if stage == "open" else 3), "no update is asked for again"
    assert [text[: text.index(":")] for text in without(run)] == ["round 2", "round 3", "round 3"]
    assert all("site_3 is missing" in text for text in without(run))
    assert run.result["stopped"] is None, "a round without scores is not one without improvement"
    assert (run.result["selected_round"], run.result["not_evaluated"]) == (1, SITES)
    assert run.result["metrics"]["global"] == {"mean": {}, "sites": {}}


@pytest.mark.parametrize("on_abort", ["retry", "skip", "stop"])
def test_nothing_that_is_done_about_aborted_rounds_is_done_about_scores(scored, on_abort):
    faults = [fault("site_3", "evaluate", round, attempt, times=9) for round in (1, 2) for attempt in range(2, 20)]
    run = scored(*faults, rounds=2, on_abort=on_abort)
    assert run.result["survivors"] == {"1": SITES, "2": SITES}
    assert list(run.metrics) == []
    assert len(without(run)) == 3


def test_a_site_outside_of_the_cohort_is_in_the_sum_all_the_same(scored):
    run = scored(cohort=3)
    assert {len(sites) for sites in run.result["survivors"].values()} == {3}
    assert rounds(run) == [1, 2, 3]
    assert rounds(run, "test") == [3]

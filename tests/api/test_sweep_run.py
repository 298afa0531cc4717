"""Running and resuming a sweep with a run that costs nothing, and the tables it makes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from pppml_core.errors import ConfigError, DataError, PlanRefused, RunFailed
from pppml_core.sweeps import Sweep, expand, open_sweep

GRID = {"personalization": ["fedavg", "local-only"]}


class Fake:
    """A run: writes result.json, counts its calls, fails where it is told to; takes ``minutes`` on its own clock."""

    def __init__(self, fail=None, minutes=0.0):
        self.calls, self.fail, self.now, self.minutes = [], fail or {}, 0.0, minutes

    def clock(self):
        return self.now

    def __call__(self, overrides, folder: Path):
        self.calls.append(folder.name)
        self.now += 60 * self.minutes
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "started").touch()
        for part, error in self.fail.items():
            if part in folder.name:
                raise error
        result = self.result(overrides["personalization"], overrides["run.seed"])
        (folder / "result.json").write_text(json.dumps(result))
        return result

    @staticmethod
    def result(rule, seed):
        dice = {"fedavg": 0.5, "local-only": 0.4}[rule] + 0.01 * seed**2
        sites = {"a": {"dice": dice - 0.1, "hd95": None}, "b": {"dice": dice + 0.1, "hd95": 3.0}}
        part = {"mean": {"dice": dice, "hd95": 3.0 if seed != 2 else None}, "sites": sites}
        empty = {"mean": {}, "sites": {}}
        metrics = {"global": part, "personalized": empty} if rule == "fedavg" else {"global": empty, "personalized": part}
        return {"metrics": metrics, "seconds": {"total": 10.0 * seed}, "bytes": {"up": 1000 * seed, "down": 500}, "rounds": 3}


def sweep(tmp_path, fake, seeds=(1, 2, 3), grid=GRID, **options):
    said = []
    result = Sweep(expand(grid, seeds), fake, tmp_path / "s", tell=said.append, clock=fake.clock, **options).run()
    return result, said


def test_all_points_run_once_and_are_tabled_with_t_intervals(tmp_path):
    fake = Fake()
    result, said = sweep(tmp_path, fake)
    assert len(fake.calls) == len(set(fake.calls)) == 6
    assert len(said) == 6
    assert (result.failed, result.missing, result.exit_code) == ({}, [], 0)
    fedavg, local = result.cells
    assert (fedavg.settings, fedavg.weights, fedavg.seeds) == ({"personalization": "fedavg"}, "global", (1, 2, 3))
    assert local.weights == "personalized"
    values = [0.51, 0.54, 0.59]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    got = fedavg.metrics["dice"]
    assert (got.estimate, got.low, got.high) == pytest.approx((np.mean(values), low, high))
    assert fedavg.metrics["hd95"].n == 2
    assert (fedavg.seconds, fedavg.bytes) == (20.0, 2500.0)


def test_the_tables_agree(tmp_path):
    result, _ = sweep(tmp_path, Fake())
    markdown = (tmp_path / "s" / "table.md").read_text()
    assert markdown.strip() == result.markdown()
    assert "| personalization | weights | dice | hd95 | time | sent | seeds |" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| fedavg"))
    got = result.cells[0].metrics["dice"]
    assert "| 0.547 [0.446, 0.647] |" in row
    assert "| 3.00 [3.00, 3.00] (n = 2) |" in row
    assert row.endswith("3/3 |")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "s" / "table.csv").read_text())))
    assert float(lines[0]["mean"]) == pytest.approx(got.estimate)
    assert [(line["personalization"], line["metric"], line["n"]) for line in lines] == [
        ("fedavg", "dice", "3"),
        ("fedavg", "hd95", "2"),
        ("local-only", "dice", "3"),
        ("local-only", "hd95", "2"),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result.table())
    shown = console.export_text()
    assert re.search(r"0\.547 \[0\.446, 0\.647\] +3/3", shown)
    assert "local-only" in shown
    assert "<td>fedavg</td>" in result._repr_html_()


def test_rows_are_flat(tmp_path):
    result, _ = sweep(tmp_path, Fake(fail={"local-only,seed=1": RunFailed("lost")}), seeds=(1,))
    done, failed = result.rows
    assert (done["personalization"], done["seed"], done["weights"], done["dice"]) == ("fedavg", 1, "global", 0.51)
    assert (failed["status"], failed["weights"], failed["error"]) == ("failed", None, "lost")


def test_finished_points_are_not_run_again_and_unfinished_ones_are_resumed(tmp_path):
    first = Fake(fail={"local-only,seed=2": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, first)
    assert len(first.calls) == 4
    index = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert index["points"]["personalization=local-only,seed=2"]["status"] == "unfinished"
    again = Fake()
    result, said = sweep(tmp_path, again)
    assert again.calls == ["personalization=local-only,seed=2", "personalization=fedavg,seed=3", "personalization=local-only,seed=3"]
    assert sum("finished before" in line for line in said) == 3
    assert result.missing == []
    more = Fake()
    wider, _ = sweep(tmp_path, more, seeds=(1, 2, 3, 4))
    assert [name for name in more.calls if "seed=4" not in name] == []
    assert wider.cells[0].seeds == (1, 2, 3, 4)


def test_a_damaged_or_removed_result_is_not_finished(tmp_path):
    sweep(tmp_path, Fake())
    (tmp_path / "s" / "personalization=fedavg,seed=1" / "result.json").write_text('{"metrics": {')
    (tmp_path / "s" / "personalization=fedavg,seed=2" / "result.json").unlink()
    again = Fake()
    result, _ = sweep(tmp_path, again)
    assert again.calls == ["personalization=fedavg,seed=1", "personalization=fedavg,seed=2"]
    assert result.missing == []


def test_a_failure_is_shown_and_costs_only_its_point(tmp_path):
    fake = Fake(fail={"local-only,seed=2": ValueError("no such | thing")})
    result, said = sweep(tmp_path, fake)
    assert len(fake.calls) == 6
    assert result.failed == {"personalization=local-only,seed=2": "ValueError: no such | thing"}
    assert result.exit_code == 1
    assert any("failed: ValueError" in line for line in said)
    assert "2/3" in result.markdown()
    assert "Failed: personalization=local-only,seed=2" in result.markdown()
    repaired, _ = sweep(tmp_path, Fake())
    assert repaired.failed == {}


def test_a_cell_without_any_result_still_has_a_row(tmp_path):
    result, _ = sweep(tmp_path, Fake(fail={"local-only": PlanRefused(["does not fit"])}))
    row = next(line for line in result.markdown().splitlines() if line.startswith("| local-only"))
    assert row.endswith("0/3 |")
    assert result.exit_code == 1


def test_a_setting_that_is_wrong_everywhere_keeps_its_exit_code(tmp_path):
    result, _ = sweep(tmp_path, Fake(fail={"seed": ConfigError("there is no such key", place="persnalization")}))
    assert result.exit_code == 2


def test_a_fault_after_the_result_is_told_and_the_result_counts(tmp_path):
    def run_one(overrides, folder):
        Fake()(overrides, folder)
        raise RunFailed("the report could not be written")

    said = []
    result = Sweep(expand(GRID, [1]), run_one, tmp_path / "s", tell=said.append).run()
    assert result.failed == {}
    assert len(result.cells[0].metrics) == 2
    assert [line for line in said if "finished, but: the report" in line]


def test_a_run_without_a_result_has_failed(tmp_path):
    result = Sweep(expand(GRID, [1]), lambda overrides, folder: {}, tmp_path / "s", tell=lambda line: None).run()
    assert set(result.failed.values()) == {"the run left no result.json"}


def test_the_budget_stops_before_a_new_point_and_names_the_missing(tmp_path):
    fake = Fake(minutes=4)
    result, said = sweep(tmp_path, fake, budget=10)
    assert len(fake.calls) == 3  # begun after 0, 4 and 8 minutes; not after 12
    assert result.missing == ["personalization=local-only,seed=2", "personalization=fedavg,seed=3", "personalization=local-only,seed=3"]
    assert "10 minutes" in said[-1]
    assert all(name in said[-1] for name in result.missing)
    assert "Not finished" in result.markdown()
    rest = Fake(minutes=4)
    assert sweep(tmp_path, rest, budget=12)[0].missing == []
    assert len(rest.calls) == 3


def test_another_base_config_is_refused_with_the_difference(tmp_path):
    sweep(tmp_path, Fake(), base={"training": {"batch_size": 8}, "model": "unet"})
    with pytest.raises(ConfigError, match=r"training\.batch_size: 8 -> 16") as caught:
        sweep(tmp_path, Fake(), base={"training": {"batch_size": 16}, "model": "unet"})
    assert caught.value.hint
    assert sweep(tmp_path, Fake(), base={"training": {"batch_size": 8}, "model": "unet"})[0].missing == []


def test_a_base_of_live_objects_can_be_recorded(tmp_path):
    assert sweep(tmp_path, Fake(), base={"model": Fake})[0].missing == []


def test_a_sweep_can_be_opened_later(tmp_path):
    result, _ = sweep(tmp_path, Fake())
    assert open_sweep(tmp_path / "s").markdown() == result.markdown()
    with pytest.raises(DataError, match="not the index of a sweep"):
        open_sweep(tmp_path)
    (tmp_path / "s" / "sweep.json").write_text("[1]")
    with pytest.raises(DataError, match="not the index"):
        sweep(tmp_path, Fake())


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "s").write_text("a file")
    with pytest.raises(DataError) as caught:
        sweep(tmp_path, Fake())
    assert str(tmp_path / "s") in str(caught.value)


@pytest.mark.parametrize("budget", [0, -1, math.nan])
def test_a_budget_must_be_positive(tmp_path, budget):
    with pytest.raises(ConfigError, match="budget"):
        sweep(tmp_path, Fake(), budget=budget)


def test_the_report_gets_the_finished_runs(tmp_path, monkeypatch):
    import pppml_core.report

    result, _ = sweep(tmp_path, Fake(fail={"local-only,seed=2": RunFailed("lost")}))
    seen = {}
    monkeypatch.setattr(pppml_core.report, "write_report", lambda runs, out: seen.update(runs=list(runs)) or out)
    assert result.report(tmp_path / "r.html") == tmp_path / "r.html"
    assert len(seen["runs"]) == 5
    assert all((run / "result.json").exists() for run in seen["runs"])
    empty, _ = sweep(tmp_path / "other", Fake(fail={"seed": RunFailed("lost")}))
    with pytest.raises(DataError, match="no point"):
        empty.report(tmp_path / "r.html")

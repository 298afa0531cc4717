import doctest
import io
import math

import pytest
from rich.console import Console

from pppml_core.report import columns, records, tables
from pppml_core.report.tables import Grid, comparison_grid, final_metrics, metrics_grid, metrics_table, to_html, to_markdown

RESULT = {
    "rounds": 4,
    "metrics": {
        "global": {"mean": {"dice": 0.6, "hd95": None}, "sites": {"a": {"dice": 0.5}, "b": {"dice": 0.7, "hd95": 12.5}}},
        "personalized": {"mean": {}, "sites": {"a": {"dice": 0.75}, "b": {"dice": None}}},
    },
}
ROWS = [
    {"round": r, "site": s, "split": split, "weights": "global", "dice": v}
    for r, s, split, v in [(1, "a", "test", 0.1), (2, "a", "test", 0.5), (2, "b", "test", None), (3, "a", "validation", 0.9)]
]


@pytest.mark.parametrize("module", [tables, columns, records])
def test_examples_in_docstrings(module: object) -> None:
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)  # type: ignore[arg-type]
    assert result.failed == 0
    assert result.attempted > 0


def test_result_keeps_its_mean_and_a_missing_one_is_made_from_what_is_defined() -> None:
    final = final_metrics(RESULT)
    assert final.weights == ("global", "personalized")
    assert (final.site_names, final.metrics, final.round) == (("a", "b"), ("dice", "hd95"), 4)
    assert final.value("global", None, "dice") == 0.6
    assert math.isnan(final.value("global", None, "hd95")), "the run said that it is undefined"
    assert final.value("personalized", None, "dice") == 0.75, "b is undefined and left out"
    assert math.isnan(final.value("personalized", "b", "dice"))


def test_an_integer_that_no_float_holds_is_undefined() -> None:
    huge = {"metrics": {"global": {"sites": {"a": {"dice": 10**400}, "b": {"dice": 0.5}, "c": {"dice": -(10**400)}}}}}
    final = final_metrics(huge)
    assert math.isnan(final.value("global", "a", "dice"))
    assert math.isnan(final.value("global", "c", "dice"))
    assert final.value("global", None, "dice") == 0.5
    assert math.isnan(final_metrics([{**ROWS[1], "dice": 10**400}]).value("global", "a", "dice"))


def test_rows_count_for_the_last_round_of_the_test_split() -> None:
    final = final_metrics(ROWS)
    assert (final.round, final.split, final.value("global", "a", "dice")) == (2, "test", 0.5)
    assert final_metrics(ROWS[3:]).split == "validation"
    assert final_metrics([]).weights == ()


def test_a_mean_row_of_the_summed_mode_is_no_site() -> None:
    summed = {"metrics": {"global": {"mean": {"dice": 0.5}, "sites": {"all": {"dice": 0.5}}}}}
    for final in (final_metrics([{**ROWS[1], "site": "all"}]), final_metrics(summed)):
        assert final.site_names == ()
        assert final.value("global", None, "dice") == 0.5
    beside_another = final_metrics([{**ROWS[1], "site": "all"}, ROWS[2]])
    assert beside_another.site_names == ("all", "b"), "a site may be called so"


def test_grid_has_the_mean_first_and_reads_the_same_in_three_forms() -> None:
    names = {"a": "Hospital <b>A</b> | x"}
    grid = metrics_grid(RESULT, names=names)
    assert grid.rows[0] == ("mean of sites", "0.600", "0.750", "–", "–")
    assert grid.rows[2] == ("b", "0.700", "–", "12.50", "–")
    assert "Hospital &lt;b>A&lt;/b> \\| x" not in to_markdown(RESULT)
    assert "| Hospital &lt;b>A&lt;/b> \\| x | 0.500 | 0.750 |" in to_markdown(RESULT, names=names)
    assert "<td>Hospital &lt;b&gt;A&lt;/b&gt; | x</td><td>0.500</td>" in to_html(RESULT, names=names)
    out = io.StringIO()
    Console(file=out, width=120).print(metrics_table(RESULT, names={"a": "A [red]\x1b[2J"}))
    assert "A [red] [2J" in out.getvalue()


def test_comparison_puts_runs_side_by_side() -> None:
    grid = comparison_grid({"fedavg": RESULT, "alone": ROWS}, "dice")
    assert grid.header == ("site", "fedavg\nglobal", "fedavg\npersonalized", "alone\nglobal")
    assert grid.rows[1:3] == (("worst site", "0.500", "0.750", "0.500"), ("a", "0.500", "0.750", "0.500"))
    assert "<table>" in grid._repr_html_()


def test_comparison_shows_one_model_once_and_each_ones_worst_site() -> None:
    sites = {"a": {"dice": 0.5}, "b": {"dice": 0.4}, "c": {"dice": None}}
    same = {"metrics": {w: {"mean": {"dice": 0.45}, "sites": sites} for w in ("global", "personalized")}}
    own = {"metrics": {"personalized": {"mean": {"dice": 0.5}, "sites": {"a": {"dice": 0.2}, "b": {"dice": 0.8}}}}}
    grid = comparison_grid({"fedavg": same, "fedper": own}, "dice")
    assert grid.header == ("site", "fedavg\none model", "fedper\npersonalized")
    assert grid.rows[:2] == (("mean of sites", "0.450", "0.500"), ("worst site", "0.400", "0.200"))
    summed = comparison_grid({"fedavg": {"metrics": {"global": {"mean": {"dice": 0.5}, "sites": {"all": {"dice": 0.5}}}}}}, "dice")
    assert summed.rows == (("mean of sites", "0.500"),), "no worst site where only sums left the sites"


def test_transposed_has_runs_as_rows() -> None:
    grid = Grid("dice", ("site", "a run\nglobal", "b"), (("mean", "0.5", "0.6"), ("x", "0.4", "0.7")), ("note",))
    assert grid.transposed() == Grid("dice", ("", "mean", "x"), (("a run, global", "0.5", "0.4"), ("b", "0.6", "0.7")), ("note",))
    assert Grid("dice", ("site", "b"), ()).transposed().rows == ()

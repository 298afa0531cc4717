"""Records as the evaluator writes them, through the first screen: a field that is renamed on one side alone turns these red."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pppml_core as pppml
from pppml_core.registry import Registry
from pppml_core.report.columns import columns
from pppml_core.report.evidence import evidence
from pppml_core.report.records import read_run

pytest.importorskip("pppml_gallery")
pytest.importorskip("pppml_imprint")
pytest.importorskip("pppml_dp")
#: so little that nobody is picked out but by chance
PRIVATE = {"use": "dp-sgd", "epsilon": 0.1, "delta": 1e-3, "clip": 1.0, "placement": "local"}
VICTIMS = 15


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page's data and the record of one attack on a run."""
    torch.set_num_threads(1)

    def go(attack: str, **sections: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        registry = Registry.only({}, "pppml_gallery.plugin", "pppml_imprint.plugin", "pppml_dp.plugin")
        task = {"use": "tiny", "sites": 2, "examples": 60}
        run = pppml.Experiment(task=task, training={"steps": 1}, run={"rounds": 1}, registry=registry, **sections).run(
            tmp_path_factory.mktemp("run") / "a", reporters=False, report=False
        )
        record = run.attack(attack, vantage="server", round=1, victims=VICTIMS, gallery=20)
        return evidence(columns([read_run(run.folder)])[0]), record

    return go


def said(page: dict[str, Any], number: int) -> str:
    """The text below a question."""
    return " ".join(f"{line.mark} {line.lead} {line.text}" for line in page["first"][number].lines)


@pytest.mark.parametrize(("privacy", "shown"), [({"use": "none"}, True), (PRIVATE, False)])
def test_opposite_records_give_opposite_answers(attacked: Any, privacy: dict[str, Any], shown: bool) -> None:
    # The noise is secret, and a verdict at the level of 1 % is wrong once in a hundred: three in a row never.
    wanted = "recovered" if shown else "not_shown_to_leak"
    for _ in range(3):
        page, record = attacked("gallery", privacy=privacy)
        if record["outcome"] == wanted:
            break
    rate = record["metrics"]["candidate@1"]
    assert record["outcome"] == wanted, record["reason"]
    assert rate["n"] == record["people"] == VICTIMS
    picked, strongest = said(page, 1), said(page, 2)
    hits = round(rate["rate"] * rate["n"])
    told = f"picked in {'up to' if shown else 'at most'} {hits} of {VICTIMS} tries among 20 images"
    assert ("✗ Shown" if shown else "○ Not shown") in picked
    assert told in picked
    assert "guessing: " in picked
    assert strongest.startswith("✗ It succeeded" if shown else "○ It failed")
    assert f"Gallery by server: {VICTIMS} images of {VICTIMS} patients to be picked out. Control passed" in strongest
    (defence,) = page["defences"]
    (row,) = defence["rows"]
    assert row["who"] == "The central server, following the protocol"
    assert row["verdict"] == ("LEAKS" if shown else "NOT SHOWN TO LEAK")
    limit = f"at most {rate['at_most']:.0%}" if not shown else f"{rate['low']:.0%} to {rate['high']:.0%}"
    assert row["answers"]["picked"]["detail"].startswith(f"{hits} of {VICTIMS} ({limit};")


def test_a_server_that_lied_is_named(attacked: Any) -> None:
    page, record = attacked("imprint", model={"use": "imprint-front", "rows": 128})
    assert record["lied"]
    (defence,) = page["defences"]
    (row,) = defence["rows"]
    assert row["who"] == "The central server, lying about the model"
    assert row["verdict"] == "LEAKS"
    rate = record["metrics"]["redrawn"]
    assert f"redrawn in up to {round(rate['rate'] * rate['n'])} of {rate['n']} tries" in said(page, 0)
    assert rate["images"] == 8 * VICTIMS

"""The paper's preset over its 50 rounds: the true epsilon stands beside the claimed one wherever a run tells its privacy."""

from __future__ import annotations

import html
import json
import re

import pytest

#: 50 rounds at sensitivity 7, noise of 0.699, zero-out adjacency, delta 1.9e-4.
TRUE = 2759
CLAIM = re.compile(
    r"epsilon (\d+) for the whole run \(unit site, adjacency zero-out, delta 0\.00019, accountant pld, placement local, adversary: anyone "
    r"who sees what leaves a site: the server, the other sites, whoever gets the model; the authors of this setting claim 6\)"
)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a run as `pppml run` makes it, and what it printed."""
    import contextlib
    import io

    import pppml_core as pppml

    experiment = pppml.Experiment(
        task={"use": "tiny", "sites": 2, "examples": 12},
        privacy={"use": "dp-update", "preset": "paper"},
        training={"steps": 1, "batch_size": 8, "optimizer": {"use": "sgd", "lr": 0.1}},
        run={"rounds": 50, "evaluate_every": 50},
    )
    folder, printed = tmp_path_factory.mktemp("paper") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        experiment.run(folder)
    return folder, plain(printed.getvalue())


def test_the_run_prints_both(ran):
    _, printed = ran
    found = CLAIM.findall(printed)
    assert len(found) >= 2, "headline and note"
    assert all(float(epsilon) == pytest.approx(TRUE, rel=0.02) for epsilon in found)


def test_the_records_hold_both_and_what_was_spent(ran):
    folder, _ = ran
    privacy = json.loads((folder / "result.json").read_text())["privacy"]
    assert privacy["epsilon"] == pytest.approx(TRUE, rel=0.02)
    assert privacy["spent"] == pytest.approx(privacy["epsilon"], rel=1e-6)
    assert privacy["details"]["claimed_epsilon"] == 6


def test_the_report_shows_both(ran):
    folder, _ = ran
    page = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", (folder / "report.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    text = plain(html.unescape(re.sub(r"<[^>]+>", " ", page)))
    found = CLAIM.findall(text)
    assert found
    assert all(float(epsilon) == pytest.approx(TRUE, rel=0.02) for epsilon in found)
    (section,) = re.findall(r"Differential privacy is claimed for the whole run: epsilon = ([\d.]+) per site, delta = 0\.00019\.", text)
    assert float(section) == pytest.approx(TRUE, rel=0.02)
    assert f"epsilon {section} claimed by the authors of this setting 6 unit site" in text


def test_other_settings_are_not_said_to_be_claimed_by_anybody(experiment):
    told = experiment({"use": "dp-update", "epsilon": 6, "delta": 1e-3}).plan().to_dict()
    assert "authors" not in json.dumps(told)

"""``clip-only``, by whichever name: its row of the plan speaks of clips and of no noise."""

from __future__ import annotations

import pytest


def said(experiment, privacy) -> str:
    plan = experiment(privacy).plan().to_dict()
    assert plan["misfits"] == []
    return next(stage["gives"] for stage in plan["stages"] if stage["name"] == "privacy (clip-only)")


@pytest.mark.parametrize(
    "privacy",
    [
        {"use": "clip-only", "clip": 2.0},
        {"use": "clip-only", "clip": 2.0, "placement": "distributed"},
        {"use": "dp-sgd", "noise_multiplier": 0, "clip": 2.0, "placement": "server"},
    ],
)
def test_gradients(experiment, privacy):
    text = said(experiment, privacy)
    assert text.startswith(f"no noise; rounds as with placement {privacy.get('placement', 'local')}; ")
    assert "2 sums, none noised; each gradient is clipped to 2 in a sum of about 32 gradients a site" in text
    assert "noise of 0" not in text
    assert "noised sums" not in text


@pytest.mark.parametrize(
    "privacy", [{"use": "clip-only", "unit": "site", "clip": 2.0}, {"use": "dp-update", "noise_multiplier": 0, "clip": 2.0}]
)
def test_updates(experiment, privacy):
    text = said(experiment, privacy)
    assert "the update of a round is clipped to 2 and not noised; " in text
    assert "noised with" not in text


def test_a_roster_from_which_some_take_part_is_not_charged(experiment):
    """Where there is noise the remark is there: the charge is as if all took part."""
    assert "charged" not in said(lambda p: experiment(p, run={"cohort": 3}), {"use": "clip-only"})
    noised = experiment({"use": "dp-sgd", "noise_multiplier": 1.0}, run={"cohort": 3}).plan().to_dict()
    assert "charged as if all did" in next(s["gives"] for s in noised["stages"] if s["name"] == "privacy (dp-sgd)")

"""A mechanism with a grid of integers of its own: settings that it puts out of effect are named, and its own bits are told."""

from __future__ import annotations

import pytest

from pppml_core.interfaces.privacy import Encoding, PrivacyMechanism, PrivacyPlan, PrivacyStatement


class Gridded(PrivacyMechanism):
    """Clips nothing and noises nothing, on the grid it was given."""

    def __init__(self, grid):
        self.grid = grid

    def plan(self, setting):
        return GriddedPlan(self.grid)


class GriddedPlan(PrivacyPlan):
    def __init__(self, grid):
        self._grid = grid

    @property
    def statement(self):
        return PrivacyStatement("gridded")

    def encoding(self, round):
        return self._grid


@pytest.fixture
def told(experiment):
    """Warnings about the encoding, and what the stage of that name gives."""

    def plan(grid, encoding):
        made = experiment(privacy=Gridded(grid), encoding=encoding).plan().plan
        assert made.misfits == []
        (stage,) = (s for s in made.stages if s.name == "encode")
        return [text for text in made.warnings if text.startswith("encoding.") and "max_weight" not in text], stage.gives

    return plan


OWN = "without effect here; gridded has a grid of integers of its own (20 bits, one range for all tensors)"


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ({"bits": 12}, "encoding.bits"),
        ({"range": 0.5}, "encoding.range"),
        ({"range": {"0.*": 0.5}, "bits": 8}, "encoding.range and encoding.bits"),
        ({"start": 0.1}, "encoding.start"),
        # So coarse that it would be warned of, if it had an effect.
        ({"range": 100.0, "bits": 2}, "encoding.range and encoding.bits"),
    ],
)
def test_settings_without_effect_are_named(told, encoding, names):
    grid = Encoding(1.0, 20)
    assert told(grid, encoding)[0] == [f"{names}: {OWN}"]
    assert not [text for text in told(None, encoding)[0] if "without effect" in text], "they have their effect where there is no grid"


def test_defaults_that_a_saved_config_spells_out_are_not_complained_of(told):
    assert told(Encoding(1.0, 20), {"range": "auto", "start": 1.0, "bits": 16})[0] == []
    assert told(Encoding(1.0, 20), {})[0] == []


def test_the_stage_tells_whose_bits_these_are(told):
    assert told(Encoding(1.0, 20), {"bits": 12})[1] == (
        "integers of 20 bits, at most 524,287 each, on the grid of gridded (not encoding.bits and encoding.range)"
    )
    assert told(None, {"bits": 12})[1] == "integers of 12 bits, at most 2,047 each"


def test_a_range_that_is_too_coarse_is_still_warned_of(told):
    assert [text.partition(";")[0] for text in told(None, {"range": 100.0, "bits": 2})[0]] == [
        "encoding.range: one step is 1e+02 at learning rate 0.05"
    ]

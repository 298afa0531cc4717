"""What a hospital that comes later can be adapted to: a positive number of its examples, no more than it has, and a draw from 0 on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pppml_core as pppml
from pppml_core.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    task = {"use": "tiny", "size": 16, "examples": 6, "sites": 2}
    return pppml.Experiment(task=task, run={"rounds": 1}, reporters=[]).run(tmp_path_factory.mktemp("later") / "run", report=False)


@pytest.mark.parametrize("examples", [0, -3, 2.5, 2.0, True, "2", 10**6])
def test_what_is_no_number_of_its_examples_is_refused(run, examples):
    held = len(run.task.load("site_2").train)
    with pytest.raises(DataError, match="training examples cannot be taken") as info:
        run.adapt("site_2", examples)
    assert info.value.hint == f"1 to {held}"
    assert repr(examples) in str(info.value)


def test_both_ends_and_numpys_numbers_are_taken(run):
    held = len(run.task.load("site_2").train)
    for examples in (1, held, np.int64(2)):
        assert isinstance(run.adapt("site_2", examples), torch.nn.Module)


@pytest.mark.parametrize("draw", [-1, 1.5, 1.0, True, "x", None])
def test_what_is_no_draw_is_refused(run, draw):
    with pytest.raises(ConfigError, match="names no draw") as info:
        run.adapt("site_2", 2, draw=draw)
    assert repr(draw) in str(info.value)


def test_a_draw_is_the_same_whatever_its_number_came_from(run):
    one, other = (run.adapt("site_2", 2, draw=draw).state_dict() for draw in (3, np.int64(3)))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("site", [None, 5, ["site_2"]])
def test_what_is_no_name_of_a_site_is_refused(run, site):
    """A name of another type has no nearest spelling."""
    calls = [run.adapt] if site is None else [run.adapt, run.model]
    for call in calls:
        with pytest.raises(ConfigError, match="there is no site") as info:
            call(site)
        assert info.value.hint == "the sites are site_1, site_2"

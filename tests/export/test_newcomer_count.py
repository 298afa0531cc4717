"""How many examples a hospital that comes later can be adapted to: a positive whole number, and no more than it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pppml_core as pppml
from pppml_core.errors import DataError


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

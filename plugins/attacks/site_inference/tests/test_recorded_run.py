"""``site-inference`` on a recorded run: all rounds arrive, and tell more than the last one."""

from __future__ import annotations

import pytest
import torch

import pppml_core as pppml
from pppml_core.registry import Registry


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Eight rounds of three steps at three sites, sums in the clear: in each round a site trains on half of its images."""
    torch.set_num_threads(1)
    experiment = pppml.Experiment(
        task={"use": "tiny", "sites": 3, "examples": 60},
        run={"rounds": 8, "seed": 1, "transcript": "secrets"},
        training={"steps": 3, "batch_size": 8, "optimizer": {"use": "sgd", "lr": 0.05}},
        registry=Registry.only("pppml_site_inference.plugin"),
    )
    return experiment.run(tmp_path_factory.mktemp("run") / "a", reporters=False, report=False)


def test_all_rounds_up_to_the_attacked_one_are_used(run):
    """Of 92 patients of three sites; nothing is drawn at random but by the run's seed. The last round alone traces a third."""
    every, last = (run.attack("site-inference", vantage="server", round=8, history=h) for h in ("all", "last"))
    assert (every["effort"]["rounds"], last["effort"]["rounds"]) == (8, 1)
    right = [record["metrics"]["site_accuracy"]["rate"] for record in (every, last)]
    assert right[0] > right[1] + 0.1
    earlier = run.attack("site-inference", vantage="server", round=3)
    assert earlier["effort"]["rounds"] == 3

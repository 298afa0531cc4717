"""One full-batch SGD step a round over all sites is centralized full-batch SGD, with small-cnn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pppml_core as pppml


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_federated_equals_centralized_after_ten_rounds(tmp_path, precision, tolerance):
    experiment = pppml.Experiment(
        task={"use": "tiny", "size": 28, "examples": 10},
        model="small-cnn",
        training={"steps": 1, "batch_size": 1000, "precision": precision, "optimizer": {"use": "sgd", "lr": 0.05}},
        encoding="float",
        run={"rounds": 10, "evaluate_every": 10},
        reporters=[],
    )
    parts = experiment.plan().plan.assembly
    start = {n: t.clone() for n, t in parts.model.state_dict().items()}
    pairs = [part.example(i) for s in parts.task.sites() for part in [parts.load(s.slug).train] for i in range(len(part))]
    images = torch.from_numpy(np.stack([p[0] for p in pairs])).to(next(iter(start.values())).dtype)
    targets = torch.from_numpy(np.stack([p[1] for p in pairs]))
    model = parts.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    expected = torch.cat([t.flatten() for t in model.state_dict().values()])
    moved = torch.cat([(t - start[n]).flatten() for n, t in model.state_dict().items()])
    assert moved.norm() > 0.01, "the weights must have moved for this test to say anything"

    found = experiment.run(tmp_path / "run", report=False).model().state_dict()
    got = torch.cat([found[n].flatten() for n in model.state_dict()])
    assert float((got - expected).norm() / expected.norm()) < tolerance

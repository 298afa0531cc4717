"""Default losses against torch, MONAI and formulas; means over examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pppml_core.learning.losses import SMOOTH, default_loss


def batch(kind: str, n: int = 4, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    size = (6, 5) if kind == "segmentation" else ()
    outputs = torch.randn(n, 3, *size, generator=generator, dtype=dtype)
    return outputs.requires_grad_(), torch.randint(0, 3, (n, *size), generator=generator)


def test_classification_is_cross_entropy() -> None:
    outputs, targets = batch("classification")
    assert default_loss("classification", outputs, targets).item() == pytest.approx(torch.nn.CrossEntropyLoss()(outputs, targets).item())


def test_segmentation_is_cross_entropy_plus_foreground_dice() -> None:
    outputs, targets = batch("segmentation")
    p = torch.softmax(outputs, 1).detach().numpy()
    t = targets.numpy()
    dice = [(2 * (p[i, c] * (t[i] == c)).sum() + SMOOTH) / (p[i, c].sum() + (t[i] == c).sum() + SMOOTH) for i in range(4) for c in (1, 2)]
    cross = -np.log(np.take_along_axis(p, t[:, None], 1)).mean()
    assert default_loss("segmentation", outputs, targets).item() == pytest.approx(cross + 1 - np.mean(dice), rel=1e-9)


def test_segmentation_of_volumes() -> None:
    outputs = torch.randn(2, 2, 4, 4, 4)
    assert default_loss("segmentation", outputs, torch.randint(0, 2, (2, 4, 4, 4))).ndim == 0


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 5.0])])
def test_gradients_of_parts_average_to_the_gradient_of_the_whole(kind: str, weights: torch.Tensor | None) -> None:
    outputs, targets = batch(kind, 6)
    (whole,) = torch.autograd.grad(default_loss(kind, outputs, targets, weights), outputs)
    parts = 0
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        loss = default_loss(kind, outputs[start:stop], targets[start:stop], weights)
        parts = parts + (stop - start) / 6 * torch.autograd.grad(loss, outputs)[0]
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


def test_class_weights_multiply_each_example() -> None:
    outputs, targets = batch("classification")
    weights = torch.tensor([0.5, 1.0, 2.0])
    each = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    expected = (each * weights[targets]).mean()
    assert default_loss("classification", outputs, targets, weights).item() == pytest.approx(expected.item())


def test_a_slice_without_foreground_pulls_gently() -> None:
    outputs = torch.full((1, 2, 16, 16), 0.0)
    outputs[:, 1] = -12.0  # nearly certain background
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(default_loss("segmentation", outputs, torch.zeros(1, 16, 16, dtype=torch.long)), outputs)
    assert gradient.abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    outputs, targets = batch("segmentation", dtype=dtype)
    loss = default_loss("segmentation", outputs, targets, torch.ones(3))
    assert loss.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)

"""Networks that mix the images of a batch out of sight of NaN: none may be book-kept, and one image moves a sum by one clip at most."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import DrawnBatch
from pppml_dp import per_example, rows_alone
from pppml_dp.clipping import Clipping
from pppml_dp.per_example import clipped_sum, method_for


class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.how = nn.Linear(8, 16), nn.Linear(16, 3), how

    def forward(self, x):
        return self.how(self, x)


def masked(m, x):
    """Keeps what is above the batch's mean."""
    h = F.relu(m.a(x))
    return m.b(h * (h > h.mean(0)))


def of_numbers(m, x):
    return m.b(F.relu(m.a(x - x.nanmean(0))))


def made_finite(m, x):
    x = torch.nan_to_num(x)
    return m.b(F.relu(m.a(x - x.mean(0))))


def above_three(m, x):
    """Not the three images of the test with NaN."""
    return m.b(F.relu(m.a(x - x.mean(0) if len(x) > 3 else x)))


def rolled(m, x):
    h = m.a(x)
    return m.b(F.relu(h + 0.5 * h.detach().roll(1, 0).clamp(-50, 50).nan_to_num()))


def faint(m, x):
    """Mixes so little that usual images do not show it."""
    h = m.a(x)
    return m.b(F.relu(h + 1e-4 * torch.nan_to_num(h.detach()).mean(0)))


MIXING = [masked, of_numbers, made_finite, above_three, rolled, faint]


def clipped(model, images, targets, **options):
    clipped_sum(model, F.cross_entropy, DrawnBatch(images, targets, np.ones(len(images))), Clipping("flat", 1.0), **options)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def batch(count=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 8, generator=generator, dtype=torch.float64), torch.arange(count) % 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("how", MIXING)
def test_one_image_moves_the_sum_by_one_clip(how, dtype):
    model = Net(how).to(dtype)
    images, targets = batch()
    images = torch.cat([images, torch.full((1, 8), 1000.0)]).to(dtype)
    targets = torch.cat([targets, targets[:1]])
    without = clipped(model, images[:-1], targets[:-1])
    assert method_for(model)[0] != "book-keeping"
    assert float((clipped(model, images, targets) - without).norm()) <= 1 + 1e-4
    with pytest.raises(PppmlError, match="book-keeping does not fit"):
        clipped(model, images, targets, method="book-keeping")


def test_mixing_that_begins_later_ends_the_run():
    model = Net(lambda m, x: m.b(F.relu(m.a(x - x.mean(0) if len(x) > 40 else x))))
    images, targets = (t.float() if t.is_floating_point() else t for t in batch())
    clipped(model, images[:32], targets[:32])
    assert method_for(model)[0] == "book-keeping"
    with pytest.raises(PppmlError, match="found after gradients were made with it") as error:
        clipped(model, images, targets)
    assert "per_example: functional" in error.value.hint


def test_the_first_batch_of_one_image_tells_nothing():
    model = Net(above_three)
    images, targets = (t.float() if t.is_floating_point() else t for t in batch())
    clipped(model, images[:1], targets[:1])
    clipped(model, images, targets)
    assert method_for(model)[0] == "functional"


def test_it_is_looked_again_now_and_then(monkeypatch):
    seen = []
    monkeypatch.setattr(per_example, "compare", lambda *args, **_: seen.append(len(args[4])))
    model = nn.Linear(8, 3)
    images, targets = torch.randn(6, 8), torch.arange(6) % 3
    clipped(model, images, targets)
    assert seen == [3]
    monkeypatch.setattr(per_example, "OFTEN", 0.0)
    for _ in range(50):
        clipped(model, images[:5], targets[:5])
    assert len(seen) == 1, "steps of no larger batch cost nothing"
    clipped(model, images.repeat(2, 1), targets.repeat(2))
    assert seen == [3, 2]
    monkeypatch.setattr(per_example, "OFTEN", 1.0)
    clipped(model, images, targets)
    assert seen == [3, 2, 2]


def test_rounding_is_told_from_mixing(monkeypatch):
    """Where float32 differs by more than the tolerance, float64 decides."""
    monkeypatch.setattr(rows_alone, "COARSE", 0.0)
    model = Net(lambda m, x: m.b(torch.tanh(m.a(x))))
    images, targets = (t.float() if t.is_floating_point() else t for t in batch(33))
    exact = []
    monkeypatch.setattr(rows_alone, "_exact", lambda *args: exact.append(1))
    clipped(model, images, targets)
    assert exact, "no difference in float32: nothing was tested"
    monkeypatch.undo()
    model = Net(masked)
    assert rows_alone._exact(model, F.cross_entropy, [images], targets, [0, 1, 2], 1.0) == "output for an image"


def test_dropout_and_hostile_images_are_no_mixing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3)).train()
    images, targets = (t.float() if t.is_floating_point() else t for t in batch(8))
    images[1], images[2], images[3], images[4] = 1e30, float("nan"), float("inf"), 3e38
    clipped(model, images, targets)
    assert method_for(model)[0] == "book-keeping"
    assert model[1].training

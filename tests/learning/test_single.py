"""Updates of single images, kept: the kept ones are those that would be made anew, whatever changed since."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from pppml_core.interfaces.attack import Defence, Images, Training
from pppml_core.learning import single
from pppml_core.learning.losses import default_loss
from pppml_core.learning.single import of_each, remembered
from pppml_core.testing.attacked import Attacked


def plain(kind: str, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return default_loss(kind, outputs, targets, None)  # type: ignore[arg-type]


@pytest.fixture
def world() -> Attacked:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    return Attacked(network, 3, loss=partial(plain, "classification"))


def images(seed: int, n: int = 4) -> Images:
    rng = np.random.default_rng(seed)
    return Images(rng.random((n, 1, 4, 4)).astype(np.float32), rng.integers(0, 3, n))


def test_what_is_kept_is_what_is_made(world: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "_MADE", {})
    names = ["1.weight", "1.bias"]
    made = 0

    def counted(ctx, model, batch, of):  # type: ignore[no-untyped-def]
        nonlocal made
        made += 1
        return of_each(ctx, model, batch, of)

    monkeypatch.setattr(single, "of_each", counted)
    first, other = images(1), images(2)
    relabelled = Images(first.images, (first.targets + 1) % 3)
    asked = [
        (world.knowledge(first), first, names),
        (world.knowledge(first), other, names),
        (world.knowledge(first), relabelled, names),
        (world.knowledge(first), first, names[::-1]),
        (world.knowledge(first, Training(0.25)), first, names),
        (world.knowledge(first, defence=Defence(clip=0.01, clips="update")), first, names),
    ]
    for again in (1, 2):
        for ctx, batch, of in asked:
            np.testing.assert_array_equal(remembered(ctx, world.network, batch, of), np.stack(list(of_each(ctx, world.network, batch, of))))
        assert made == len(asked), again
    with torch.no_grad():
        world.network[1].weight.mul_(2)  # other weights are other updates
    ctx = world.knowledge(first)
    np.testing.assert_array_equal(remembered(ctx, world.network, first, names), np.stack(list(of_each(ctx, world.network, first, names))))
    assert made == len(asked) + 1


def test_no_more_is_kept_than_said_and_nothing_of_a_loss_without_a_name(world: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "_MADE", {})
    monkeypatch.setattr(single, "HELD", 500)  # an update has 51 numbers
    for seed in range(6):
        remembered(world.knowledge(images(seed)), world.network, images(seed), ["1.weight", "1.bias"])
    assert sum(kept.size for kept in single._MADE.values()) <= 500
    assert len(single._MADE) == 2
    monkeypatch.setattr(single, "_MADE", {})
    world.loss = lambda outputs, targets: torch.nn.functional.cross_entropy(outputs, targets)
    remembered(world.knowledge(images(1)), world.network, images(1), ["1.weight"])
    assert not single._MADE

"""One optimizer step of scale-resnet9 (2,446,664 parameters) on 64 colour images of 28 x 28: plain SGD, and with per-example clipping.

Ours by each method, and Opacus in each of its modes, all without noise. ``python benchmarks/dp_sgd_steps.py ours`` makes three steps and
prints the process's peak resident size in MiB: before the first step, and after the last.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from peak import peak
from torch.nn.functional import cross_entropy

from pppml_core.interfaces.personalization import DrawnBatch
from pppml_dp.clipping import Clipping
from pppml_dp.per_example import clipped_sum, method_for
from pppml_dpresnet.scale_resnet9 import scale_resnet9

BATCH, CLASSES, CLIP = 64, 8, 1.0
OWN = {"ours": "auto", "torch.func": "functional", "loop": "loop"}
OPACUS = {"Opacus hooks": "hooks", "Opacus functorch": "functorch", "Opacus ew": "ew", "Opacus ghost": "ghost"}


def network() -> torch.nn.Module:
    """The same weights every time."""
    torch.manual_seed(0)
    return scale_resnet9(3, CLASSES).train()


def step_of(name: str) -> Callable[[], torch.nn.Module]:
    """One step, ready to be called again and again; it returns the network, with the gradient of the step."""
    model = network()
    images = torch.randn(BATCH, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(BATCH) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    if name in OPACUS:
        return _opacus(OPACUS[name], model, optimizer, images, targets)
    batch = DrawnBatch(images, targets, np.ones(BATCH))

    def plain() -> torch.nn.Module:
        optimizer.zero_grad()
        cross_entropy(model(images), targets).backward()
        optimizer.step()
        return model

    def clipped() -> torch.nn.Module:
        clipped_sum(model, cross_entropy, batch, Clipping("flat", CLIP), method=OWN[name])  # type: ignore[arg-type]
        optimizer.step()
        return model

    if name == "ours":
        assert method_for(model)[0] == "book-keeping"
    return plain if name == "plain" else clipped


def _opacus(
    mode: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, targets: torch.Tensor
) -> Callable[[], torch.nn.Module]:
    from opacus.grad_sample.utils import wrap_model
    from opacus.optimizers import get_optimizer_class
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    settings = {"max_grad_norm": CLIP, "use_ghost_clipping": True} if mode == "ghost" else {}
    wrapped = wrap_model(model, grad_sample_mode=mode, batch_first=True, loss_reduction="mean", **settings)
    kind = get_optimizer_class(clipping="flat", distributed=False, grad_sample_mode=mode)
    private = kind(optimizer=optimizer, noise_multiplier=0.0, max_grad_norm=CLIP, expected_batch_size=BATCH)
    criterion = torch.nn.CrossEntropyLoss()
    loss = DPLossFastGradientClipping(wrapped, private, criterion) if mode == "ghost" else criterion

    def step() -> torch.nn.Module:
        private.zero_grad()
        loss(wrapped(images), targets).backward()
        private.step()
        return model

    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["plain", *OWN, *OPACUS])
    step = step_of(parser.parse_args().side)
    before = peak()
    for _ in range(3):
        step()
    print(before, peak())

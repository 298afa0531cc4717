"""Default losses. Both are means over examples, so that gradients of equal batches average to the gradient of their union."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from pppml_core.interfaces.task import Kind

if TYPE_CHECKING:
    from monai.losses.dice import DiceLoss

#: Added to Dice's numerator and denominator, in pixels. MONAI's 1e-5 lets a slice without foreground pull with a gradient of up to 1e5.
SMOOTH = 1.0


def default_loss(kind: Kind, outputs: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean loss of a batch, a 0-d tensor of the outputs' dtype (float32 for half precision).

    Args:
        kind: ``classification``: cross-entropy. ``segmentation``: cross-entropy averaged over pixels, plus one minus Dice of the softmax,
            averaged over examples and foreground classes (MONAI's ``DiceLoss`` without background, smoothed by ``SMOOTH`` pixels): the
            sum that MONAI calls ``DiceCELoss``.
        outputs: logits ``(batch, classes)`` or ``(batch, classes, *size)``.
        targets: int64 ``(batch,)`` or ``(batch, *size)``.
        class_weights: ``(classes,)`` factors of the cross-entropy. The weighted terms are averaged over the batch as they are, not
            divided by the batch's summed weights as torch does: otherwise the loss were no mean over examples.

    """
    if outputs.dtype in (torch.bfloat16, torch.float16):
        outputs = outputs.float()
    weights = None if class_weights is None else class_weights.to(outputs)
    loss = cross_entropy(outputs, targets, weight=weights, reduction="none").mean()
    if kind == "segmentation":
        loss = loss + _dice()(outputs, targets.unsqueeze(1))
    return loss


@cache
def _dice() -> DiceLoss:
    from monai.losses.dice import DiceLoss

    return DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)

"""Group normalization in place of batch normalization (Wu and He 2018, arXiv:1803.08494).

Batch normalization keeps running statistics, which mix the sites' scanners when they are averaged, and makes the output of one example
depend on the others of its batch, so that per-example gradients do not exist. Group normalization does neither.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def groups_for(channels: int, at_most: int) -> int:
    """The largest number of groups that divides ``channels`` and is not above ``at_most``.

    >>> groups_for(48, 8), groups_for(92, 8), groups_for(7, 4)
    (8, 4, 1)
    """
    return next(groups for groups in range(min(at_most, channels), 0, -1) if channels % groups == 0)


def replace_batch_norm(network: nn.Module, groups: int) -> nn.Module:
    """``network`` with a GroupNorm of at most ``groups`` groups in place of every batch normalization, changed in place.

    Affine parameters are kept where the batch normalization had them; names stay, running statistics go.
    """
    for name, child in list(network.named_children()):
        if isinstance(child, _BatchNorm):
            new = nn.GroupNorm(groups_for(child.num_features, groups), child.num_features, eps=child.eps, affine=child.affine)
            if child.affine:
                with torch.no_grad():
                    new.weight.copy_(child.weight)
                    new.bias.copy_(child.bias)
            setattr(network, name, new)
        else:
            replace_batch_norm(child, groups)
    return network

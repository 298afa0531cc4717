"""The networks in MONAI's config form, for bundles that are used without this plugin. Plain data; nothing is built here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

#: Follows a tuple or list of outputs down to the first tensor, as a forward hook.
_FIRST = "$lambda module, inputs, output: (lambda f: f(f, output))(lambda f, o: f(f, o[0]) if isinstance(o, (tuple, list)) else o)"


def definition(target: str, args: Mapping[str, Any], network: nn.Module, *, replaced: bool = False, first: bool = False) -> dict[str, Any]:
    """``network_def`` of ``monai.networks.nets.<target>`` called with ``args``.

    Args:
        target: class, or function that makes one.
        args: its arguments.
        network: as it is built, to be read.
        replaced: its GroupNorms stand where the constructor puts batch normalization, see :mod:`pppml_monai_nets.norms`. How many groups
            divide a layer's channels differs from layer to layer, so each is named.
        first: it returns several outputs, of which the first is meant.

    """
    base = {"_target_": f"monai.networks.nets.{target}", **args}
    if not (replaced or first):
        return {"network_def": base}
    sections: dict[str, Any] = {"network_base": base}
    steps = []
    if replaced:
        norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.GroupNorm)}
        sections["group_norms"] = [[n, m.num_groups, m.num_channels, m.eps, m.affine] for n, m in norms.items()]
        put = "monai.networks.utils.replace_modules(@network_base, name, torch.nn.GroupNorm(groups, channels, eps=eps, affine=affine))"
        steps.append(f"[{put} for name, groups, channels, eps, affine in @group_norms]")
    if first:
        sections["first_output"] = _FIRST
        steps.append("@network_base.register_forward_hook(@first_output)")
    return {**sections, "network_def": f"$({', '.join(steps)}, @network_base)[-1]"}

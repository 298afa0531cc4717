"""A network of :mod:`.blocks` in MONAI's config form, so that an exported bundle needs torch and MONAI only."""

from __future__ import annotations

from typing import Any

from torch import nn

from pppml_dpresnet.blocks import Residual


def definition(network: nn.Module) -> dict[str, Any]:
    """``network_def``: one expression that builds a network of the same layers under the same names.

    Raises KeyError for a layer that is not known here.
    """
    return {"network_def": f"${_expression(network)}"}


def _expression(module: nn.Module) -> str:
    if isinstance(module, nn.Sequential):
        layers = ", ".join(f"({name!r}, {_expression(child)})" for name, child in module.named_children())
        return f"torch.nn.Sequential(collections.OrderedDict([{layers}]))"
    if isinstance(module, Residual):  # MONAI's has the same attribute, `submodule`
        return f"monai.networks.layers.SkipConnection({_expression(module.submodule)}, mode='add')"
    name = type(module).__name__
    arguments = ", ".join(f"{key}={getattr(module, key)!r}" for key in _ARGUMENTS[name])
    bias = f", bias={module.bias is not None}" if isinstance(module, nn.Conv2d | nn.Linear) else ""
    return f"torch.nn.{name}({arguments}{bias})"


#: Constructor arguments that are attributes of the same name.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    "GroupNorm": ("num_groups", "num_channels", "eps"),
    "Linear": ("in_features", "out_features"),
    "MaxPool2d": ("kernel_size",),
    "AdaptiveAvgPool2d": ("output_size",),
    "AdaptiveMaxPool2d": ("output_size",),
    "Flatten": (),
    "Mish": (),
    "ReLU": (),
}

"""What this plugin offers."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_dpresnet.config import DPResNet9Config, GroupNormedConfig, LinearHeadConfig, ScaleResNet9Config


@hookimpl
def pppml_models() -> Sequence[Component]:
    """The networks of this plugin."""
    return [
        Component(
            name="dp-resnet9",
            config=DPResNet9Config,
            target="pppml_dpresnet.dp_resnet9:DPResNet9Model",
            summary="the DPResNet authors' residual network with group normalization, 2-D classification",
            needs=("torch",),
            cites=("Haj Fares and Saad 2024, DPResNet, arXiv:2412.00687",),
        ),
        Component(
            name="scale-resnet9",
            config=ScaleResNet9Config,
            target="pppml_dpresnet.scale_resnet9:ScaleResNet9Model",
            summary="ResNet-9 with ScaleNorm, half the weights of dp-resnet9, 2-D classification",
            needs=("torch",),
            cites=("Klause et al. 2022, Differentially private training of residual networks with scale normalisation, arXiv:2203.00324",),
        ),
        Component(
            name="linear-head",
            config=LinearHeadConfig,
            target="pppml_dpresnet.linear_head:LinearHeadModel",
            summary="a linear layer on frozen features of a given network and weights file: few weights, so little noise",
            needs=("torch", "safetensors"),
            cites=("Tramer and Boneh 2021, Differentially private learning needs better features, arXiv:2011.11660",),
        ),
        Component(
            name="group-normed",
            config=GroupNormedConfig,
            target="pppml_dpresnet.group_normed:GroupNormedModel",
            summary="another network with group in place of batch normalization and no in-place activation",
            needs=("torch",),
            cites=("Wu and He 2018, Group normalization, arXiv:1803.08494",),
        ),
    ]

"""MONAI's DenseNet (Huang et al. 2017), with a small variant for CPUs."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DenseNet
from torch import nn

from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_monai_nets.config import DenseNetConfig
from pppml_monai_nets.definitions import definition
from pppml_monai_nets.norms import replace_batch_norm
from pppml_monai_nets.probe import kind_misfits, shape_misfits

#: ``small`` has three blocks instead of four, so that images of 28 px are large enough; the others are table 1 of the paper.
VARIANTS: dict[str, dict[str, Any]] = {
    "small": {"init_features": 16, "growth_rate": 12, "block_config": (4, 8, 8)},
    "121": {"init_features": 64, "growth_rate": 32, "block_config": (6, 12, 24, 16)},
    "169": {"init_features": 64, "growth_rate": 32, "block_config": (6, 12, 32, 32)},
    "201": {"init_features": 64, "growth_rate": 32, "block_config": (6, 12, 48, 32)},
    "264": {"init_features": 64, "growth_rate": 32, "block_config": (6, 12, 64, 48)},
}


class DenseNetModel(ModelFactory):
    """Input ``(batch, channels, *size)``, output logits ``(batch, classes)``; 2-D or 3-D by the task's size."""

    config: DenseNetConfig

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Wrong kind of task, or images that the network's poolings shrink to nothing."""
        if out := kind_misfits("densenet", "classification", spec):
            return out
        if len(spec.size) not in (2, 3):
            return [f"model: densenet serves 2-D and 3-D images; the task's size is {spec.size}"]
        label = f"densenet ({self.config.variant})"
        # The first convolution and pooling halve with rounding up, each transition between blocks with rounding down.
        smallest = 2 ** (len(VARIANTS[self.config.variant]["block_config"]) + 1) - 3
        if min(spec.size) < smallest:
            return [f"model: {label} needs images of at least {smallest} px along every axis; the task's size is {spec.size}"]
        return shape_misfits(label, lambda: self.build(spec), spec)

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network, without in-place activations where `norm: group` is asked for (they break per-example gradients)."""
        network = DenseNet(**self._arguments(spec))
        return replace_batch_norm(network, self.config.groups) if self.config.norm == "group" else network

    def definition(self, spec: TaskSpec) -> dict[str, Any]:
        """The same network for MONAI alone."""
        return definition("DenseNet", self._arguments(spec), self.build(spec), replaced=self.config.norm == "group")

    def _arguments(self, spec: TaskSpec) -> dict[str, Any]:
        return {
            "spatial_dims": len(spec.size),
            "in_channels": spec.channels,
            "out_channels": len(spec.classes),
            "act": ("relu", {"inplace": self.config.norm != "group"}),
            "dropout_prob": self.config.dropout,
            **VARIANTS[self.config.variant],
        }

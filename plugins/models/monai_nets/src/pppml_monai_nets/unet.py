"""MONAI's U-Net (Ronneberger et al. 2015, with the residual units of Kerfoot et al. 2019)."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import UNet
from torch import nn

from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_monai_nets.config import UNetConfig
from pppml_monai_nets.definitions import definition
from pppml_monai_nets.norms import replace_batch_norm
from pppml_monai_nets.probe import kind_misfits, shape_misfits

DEFAULT_CHANNELS = {2: (16, 32, 64, 128), 3: (12, 24, 48, 96)}


class UNetModel(ModelFactory):
    """Input ``(batch, channels, *size)``, output logits ``(batch, classes, *size)``; 2-D or 3-D by the task's size."""

    config: UNetConfig

    def _channels(self, spec: TaskSpec) -> tuple[int, ...]:
        return self.config.channels or DEFAULT_CHANNELS[len(spec.size)]

    def _strides(self, spec: TaskSpec) -> tuple[int, ...]:
        return self.config.strides or (2,) * (len(self._channels(spec)) - 1)

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Wrong kind of task, other than 2 or 3 dimensions, a size the strides do not divide or shrink to a single point."""
        if out := kind_misfits("unet", "segmentation", spec):
            return out
        if len(spec.size) not in DEFAULT_CHANNELS:
            return [f"model: unet serves 2-D and 3-D images; the task's size is {spec.size}"]
        factor = 1
        for stride in self._strides(spec):
            factor *= stride
        if any(size % factor for size in spec.size):
            multiples = tuple(max(1, round(size / factor)) * factor for size in spec.size)
            return [
                f"model: the size {spec.size} is not divisible by {factor}, the product of unet's strides {self._strides(spec)}: "
                f"use size {multiples} or fewer levels"
            ]
        if all(size == factor for size in spec.size) and self.config.norm != "batch":
            return [f"model: unet shrinks {spec.size} to a single point, which `norm: {self.config.norm}` sets to zero: use fewer levels"]
        return shape_misfits("unet", lambda: self.build(spec), spec)

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network. `norm: group` is built with batch normalization and then replaced, so that groups can fit each layer."""
        network = UNet(**self._arguments(spec))
        return replace_batch_norm(network, self.config.groups) if self.config.norm == "group" else network

    def definition(self, spec: TaskSpec) -> dict[str, Any]:
        """The same network for MONAI alone."""
        return definition("UNet", self._arguments(spec), self.build(spec), replaced=self.config.norm == "group")

    def _arguments(self, spec: TaskSpec) -> dict[str, Any]:
        return {
            "spatial_dims": len(spec.size),
            "in_channels": spec.channels,
            "out_channels": len(spec.classes),
            "channels": self._channels(spec),
            "strides": self._strides(spec),
            "num_res_units": self.config.num_res_units,
            "norm": "instance" if self.config.norm == "instance" else "batch",
            "dropout": self.config.dropout,
        }

"""Models: networks by name.

::

    class UNet(ModelFactory):
        def build(self, spec):
            return monai.networks.nets.UNet(len(spec.size), spec.channels, len(spec.classes), ...)

``build`` is called inside a seeded block, so plain PyTorch initialization is reproducible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pppml_core.component import ComponentConfig
from pppml_core.interfaces.task import TaskSpec

if TYPE_CHECKING:
    import torch


class ModelFactory(ABC):
    """Makes a network for a task."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def misfits(self, spec: TaskSpec) -> list[str]:
        """All reasons why this network cannot serve this task."""
        return []

    @abstractmethod
    def build(self, spec: TaskSpec) -> torch.nn.Module:
        """A network: input ``(batch, channels, *size)`` float32, output logits ``(batch, classes)`` or ``(batch, classes, *size)``."""

"""Models: networks by name.

::

    class UNet(ModelFactory):
        def build(self, spec):
            return monai.networks.nets.UNet(len(spec.size), spec.channels, len(spec.classes), ...)

``build`` is called inside a seeded block, so plain PyTorch initialization is reproducible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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

    def definition(self, spec: TaskSpec) -> Mapping[str, Any] | None:
        """The same network in MONAI's config form, for `pppml export bundle`; None: it is exported as TorchScript.

        Sections of a MONAI bundle config, plain data: ``network_def`` and whatever it refers to with ``@``. They may name torch and MONAI
        only, and must build a network with the names and shapes of ``build(spec).state_dict()`` and the same outputs in evaluation mode;
        the export checks both. See https://docs.monai.io/en/stable/config_syntax.html.
        """
        return None

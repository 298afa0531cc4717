"""Gradient rules: how the gradient of one batch is made. The plain rule is autograd; a privacy mechanism may bring its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import Batch
from pppml_core.learning.second_order import CheapSecondDerivatives

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PlainGradients:
    """Autograd: zero the gradients, one forward and one backward pass; returns the batch's mean loss.

    ``precision`` ``bf16`` runs the forward pass under autocast; parameters and gradients stay float32.
    """

    def __init__(self, loss: LossFunction, precision: str = "float32") -> None:
        #: the mean loss of a batch from its outputs and targets.
        self.loss, self.precision = loss, precision

    def __call__(self, model: torch.nn.Module, batch: Batch) -> float:
        """Sets ``.grad`` of every parameter that takes part."""
        model.zero_grad(set_to_none=True)
        value = self._value(model, batch)
        value.backward()
        return float(value.detach())

    def hessian_vector(self, model: torch.nn.Module, batch: Batch, vector: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The Hessian of the batch's mean loss at the model's weights times ``vector``, by differentiating the gradient once more.

        Args:
            model: its ``.grad`` fields are left as they are; buffers change as in any forward pass in the model's mode.
            batch: images and targets.
            vector: parameter name -> tensor of its shape. Parameters that are not named count as zero in it.

        Returns:
            Parameter name -> product, for the named parameters; zero for those on which the gradient does not depend.

        Raises PppmlError with ``precision`` ``bf16``, which second derivatives do not survive.

        """
        if self.precision == "bf16":
            raise PppmlError("Hessian-vector products are not made in bf16", place="training.precision", hint="use float32")
        parameters = {n: p for n, p in model.named_parameters() if n in vector}
        names, at = list(parameters), list(parameters.values())
        # Fused attention has no second derivative; its plain form has.
        with CheapSecondDerivatives(), sdpa_kernel(SDPBackend.MATH):
            value = self._value(model, batch)
        gradients = torch.autograd.grad(value, at, create_graph=True, allow_unused=True)
        taken = [(g, vector[n]) for g, n in zip(gradients, names, strict=True) if g is not None and g.requires_grad]
        if not taken:  # the loss is linear in these parameters
            return {n: torch.zeros_like(p) for n, p in parameters.items()}
        products = torch.autograd.grad([g for g, _ in taken], at, [v for _, v in taken], allow_unused=True)
        return {n: torch.zeros_like(p) if h is None else h for (n, p), h in zip(parameters.items(), products, strict=True)}

    def _value(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        images, targets = batch
        mixed: AbstractContextManager[object] = nullcontext()
        if self.precision == "bf16":
            mixed = torch.autocast(images.device.type, torch.bfloat16)
        with mixed:
            return self.loss(model(images), targets)


def plain_gradients(loss: LossFunction, precision: str = "float32") -> PlainGradients:
    """The rule without any privacy mechanism."""
    return PlainGradients(loss, precision)

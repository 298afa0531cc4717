"""Any network of ``monai.networks.nets`` by its name, with what the task knows filled into its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from pppml_core.errors import ConfigError, nearest
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_monai_nets.config import MonaiConfig
from pppml_monai_nets.definitions import definition
from pppml_monai_nets.norms import replace_batch_norm
from pppml_monai_nets.probe import shape_misfits


def known_names() -> list[str]:
    """Network classes, and functions that make one (``resnet18``), of ``monai.networks.nets``."""
    return sorted(name for name in dir(nets) if _makes_network(getattr(nets, name)))


def _makes_network(thing: Any) -> bool:
    if inspect.isclass(thing):
        return issubclass(thing, nn.Module)
    return inspect.isfunction(thing) and _returned_class(thing) is not None


def _returned_class(function: Callable[..., Any]) -> type[nn.Module] | None:
    """The network class a maker such as ``resnet18(...) -> ResNet`` is annotated to return."""
    annotation = inspect.signature(function).return_annotation
    found = getattr(nets, annotation, None) if isinstance(annotation, str) else annotation
    return found if inspect.isclass(found) and issubclass(found, nn.Module) else None


def accepted(maker: Callable[..., Any]) -> set[str]:
    """Names of the arguments a constructor takes; where it hands ``**kwargs`` on, those of the class behind it too."""
    names: set[str] = set()
    chain: list[Any] = [c.__init__ for c in maker.__mro__ if "__init__" in vars(c)] if inspect.isclass(maker) else [maker]
    if not inspect.isclass(maker) and (behind := _returned_class(maker)) is not None:
        chain.append(behind.__init__)
    for function in chain:
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def from_task(spec: TaskSpec) -> dict[str, Any]:
    """What a task knows, under every name MONAI's constructors have for it."""
    classes, size = len(spec.classes), tuple(spec.size)
    return {
        **dict.fromkeys(("in_channels", "n_input_channels"), spec.channels),
        **dict.fromkeys(("out_channels", "unet_out_channels", "num_classes", "classes"), classes),
        "spatial_dims": len(size),
        **dict.fromkeys(("img_size", "image_size", "input_image_size"), size),
        "in_shape": (spec.channels, *size),
        # Logits of classes, not features behind a tanh; and nothing is downloaded unless asked for.
        "classification": spec.kind == "classification",
        "post_activation": "none",
        "pretrained": False,
    }


class MonaiModel(ModelFactory):
    """``{use: monai, name: SwinUNETR, args: {feature_size: 12}}``."""

    config: MonaiConfig

    def _maker(self) -> Callable[..., nn.Module]:
        name = self.config.name
        if name not in known_names():
            close = nearest(name, known_names())
            raise ConfigError(
                f"monai.networks.nets has no network {name!r}",
                place="model.name",
                hint=f"did you mean {close!r}?" if close else "see the list at docs.monai.io, networks, nets.",
            )
        maker: Callable[..., nn.Module] = getattr(nets, name)
        return maker

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Unknown network or argument, a constructor that refuses, logits of another shape than the task needs."""
        try:
            names = accepted(self._maker())
        except ConfigError as error:
            return [str(error)]
        unknown = [name for name in self.config.args if name not in names]
        if unknown:
            hints = ", ".join(f"{name!r}" + (f" (did you mean {close!r}?)" if (close := nearest(name, names)) else "") for name in unknown)
            return [f"model.args: {self.config.name} has no argument {hints}"]
        return shape_misfits(self.config.name, lambda: self.build(spec), spec)

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network. One that returns several outputs (deep supervision, hidden states) is made to return the first.

        Raises ConfigError on an unknown name and on arguments the constructor refuses.
        """
        network = self._network(spec)
        network.register_forward_hook(_first_output)
        return replace_batch_norm(network, self.config.groups) if self.config.norm == "group" else network

    def definition(self, spec: TaskSpec) -> dict[str, Any]:
        """The same network for MONAI alone."""
        network = self._network(spec).eval()
        with torch.no_grad():
            several = not isinstance(network(torch.zeros((1, spec.channels, *spec.size))), torch.Tensor)
        group = self.config.norm == "group"
        return definition(self.config.name, self._arguments(spec), self.build(spec), replaced=group, first=several)

    def _arguments(self, spec: TaskSpec) -> dict[str, Any]:
        names = accepted(self._maker())
        return {**{name: value for name, value in from_task(spec).items() if name in names}, **self.config.args}

    def _network(self, spec: TaskSpec) -> nn.Module:
        maker, args = self._maker(), self._arguments(spec)
        try:
            return maker(**args)
        except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
            raise ConfigError(
                f"{self.config.name} refuses its arguments: {error}", place="model.args", hint=f"it was called with {args}"
            ) from error


def _first_output(module: nn.Module, inputs: Any, output: Any) -> torch.Tensor | None:
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None

"""Try a network without computing anything: torch's meta device has shapes only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pppml_core.errors import PppmlError
from pppml_core.interfaces.task import TaskSpec
from pppml_core.randomness import seeded


def expected_shape(spec: TaskSpec, batch: int) -> tuple[int, ...]:
    """Shape of the logits a task of this kind needs."""
    return (batch, len(spec.classes), *(spec.size if spec.kind == "segmentation" else ()))


def shape_misfits(label: str, build: Callable[[], nn.Module], spec: TaskSpec) -> list[str]:
    """What is wrong when ``build()`` is fed a batch of two of the task's images in training mode; empty where it fits.

    Networks that must look at a value on the way cannot be tried like this; they get the benefit of the doubt.
    """
    shape = (2, spec.channels, *spec.size)
    try:
        with seeded(0):  # a constructor draws weights; nobody else's stream may notice
            network = build().to("meta").train()
        with torch.no_grad():
            output = network(torch.zeros(shape, device="meta"))
    except PppmlError as error:
        return [str(error)]
    except NotImplementedError:
        return []
    except Exception as error:  # a network's constructor and forward raise whatever they like; all of it is the misfit
        if "meta" in str(error):
            return []
        return [f"model: {label} cannot take images of shape {shape[1:]}: {_first_line(error)}"]
    if not isinstance(output, torch.Tensor):
        return [f"model: {label} returns a {type(output).__name__}, not a tensor of logits"]
    if tuple(output.shape) != expected_shape(spec, 2):
        found, wanted = tuple(output.shape)[1:], expected_shape(spec, 2)[1:]
        return [f"model: {label} gives {found} for one image of shape {shape[1:]}; the {spec.kind} task needs {wanted}"]
    return []


def kind_misfits(label: str, serves: str, spec: TaskSpec) -> list[str]:
    """A segmentation network for a classification task, or the reverse."""
    other = {"segmentation": "unet", "classification": "densenet or small-cnn"}[spec.kind]
    return [] if spec.kind == serves else [f"model: {label} is for {serves}; this task is {spec.kind}: use {other}"]


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]

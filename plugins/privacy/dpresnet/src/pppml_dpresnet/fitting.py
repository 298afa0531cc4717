"""Why a 2-D classifier cannot serve a task."""

from __future__ import annotations

from pppml_core.interfaces.task import TaskSpec


def kind_misfits(label: str, spec: TaskSpec) -> list[str]:
    """A segmentation task."""
    return [] if spec.kind == "classification" else [f"model: {label} is for classification; this task is {spec.kind}: use unet"]


def flat_misfits(label: str, smallest: int, spec: TaskSpec) -> list[str]:
    """Wrong kind of task, volumes, images with fewer than ``smallest`` pixels along an axis."""
    if out := kind_misfits(label, spec):
        return out
    if len(spec.size) != 2:
        other = "{use: group-normed, of: densenet}"
        return [f"model: {label} is a 2-D network; the task has {len(spec.size)}-D images of size {spec.size}: use {other}"]
    if min(spec.size) < smallest:
        return [f"model: {label} needs images of at least {smallest} px; the task's size is {spec.size}"]
    return []

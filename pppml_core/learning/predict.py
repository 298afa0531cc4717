"""Prediction on images that no run has seen: read, predict in windows, write back.

``predict_run`` is all three; ``predict`` alone is for arrays.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.interfaces.task import Task, TaskSpec
from pppml_core.learning.reading import Image, Info, read_images
from pppml_core.learning.writing import Probabilities, as_mask, write_outputs

if TYPE_CHECKING:
    import torch

__all__ = ["PredictionResult", "as_mask", "predict", "predict_run", "read_images", "write_outputs"]


def predict(
    model: torch.nn.Module,
    spec: TaskSpec,
    images: Sequence[Image],
    device: str | torch.device = "cpu",
    overlap: float = 0.25,
    batch_size: int = 16,
) -> list[Probabilities]:
    """Softmax probabilities of each image, float32: ``(classes,)`` for classification, ``(classes, *image size)`` for segmentation.

    Segmentation of an image that is not of ``spec.size`` goes through MONAI's sliding window of that size: smaller images are padded by
    repeating their edges, larger ones covered by windows whose probabilities are blended with Gaussian weights. A volume given to a 2-D
    model is predicted slice by slice along its last axis. Classification resizes to ``spec.size`` (linear, anti-aliased).

    Args:
        model: gives logits; its mode and device are as before afterwards.
        spec: of the task it was trained for.
        images: float32 ``(channels, *any size)``; sizes may differ.
        device: where to compute: ``cpu``, ``cuda``, or ``auto``.
        overlap: of neighbouring windows, 0 to below 1.
        batch_size: images at a time.

    Raises DataError on channels or dimensions the model was not made for.

    """
    import torch

    from pppml_core.learning.evaluation import segment

    for image in images:
        _check(spec, image)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    training = model.training
    model.to(device).eval()
    out: list[Probabilities] = []
    try:
        with torch.inference_mode():
            for _, same_size in groupby(images, key=lambda image: image.shape):
                together = list(same_size)
                for start in range(0, len(together), batch_size):
                    batch = torch.from_numpy(np.stack(together[start : start + batch_size])).to(dtype)
                    found = (
                        _classify(model, spec, batch, device)
                        if spec.kind == "classification"
                        else segment(model, batch, spec.size, device, overlap)
                    )
                    out += list(found.float().cpu().numpy())
    finally:
        model.to(home).train(training)
    return out


def _check(spec: TaskSpec, image: npt.NDArray[Any]) -> None:
    dims, wanted = image.ndim - 1, len(spec.size)
    if image.shape[0] != spec.channels:
        raise DataError(f"an image of {image.shape[0]} channels; the model takes {spec.channels}", place="predict")
    if dims != wanted and not (spec.kind == "segmentation" and (dims, wanted) == (3, 2)):
        hint = "give a volume: NIfTI or a folder with a DICOM series." if wanted > dims else "give single images, not a volume."
        raise DataError(f"a {dims}-D image of shape {image.shape[1:]}; the model takes {wanted}-D images", place="predict", hint=hint)


def _classify(model: torch.nn.Module, spec: TaskSpec, batch: torch.Tensor, device: Any) -> torch.Tensor:
    import torch

    if tuple(batch.shape[2:]) != spec.size:
        from monai.transforms.spatial.array import Resize

        resize = Resize(spec.size, mode="bilinear" if len(spec.size) == 2 else "trilinear", anti_aliasing=True)
        batch = torch.stack([torch.as_tensor(np.asarray(resize(image))) for image in batch]).to(batch.dtype)
    return torch.softmax(model(batch.to(device)).float(), dim=1)


@dataclass(frozen=True)
class PredictionResult:
    """What was predicted for which image, and the files written. Prints as a table in a notebook."""

    kind: str
    classes: tuple[str, ...]
    infos: tuple[Info, ...] = field(repr=False)
    #: ``(classes,)`` or ``(classes, *size)`` float32 of each image, on the grid the model saw.
    probabilities: tuple[Probabilities, ...] = field(repr=False)
    files: tuple[Path, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each image."""
        return tuple(str(info["name"]) for info in self.infos)

    @property
    def masks(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """Class index of each pixel (segmentation)."""
        return tuple(as_mask(p) for p in self.probabilities)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row an image: its class and probability, or the share of its pixels in each class."""
        out = []
        for name, p in zip(self.names, self.probabilities, strict=True):
            if self.kind == "classification":
                out.append({"name": name, "class": self.classes[int(p.argmax())], "probability": float(p.max())})
            else:
                share = np.bincount(as_mask(p).ravel(), minlength=len(self.classes)) / p[0].size
                out.append({"name": name, **{c: float(s) for c, s in zip(self.classes, share, strict=True)}})
        return out

    def _repr_html_(self) -> str:
        rows = self.rows
        cells = [[f"{v:.4f}" if isinstance(v, float) else html.escape(str(v)) for v in row.values()] for row in rows[:50]]
        head = "".join(f"<th>{html.escape(str(key))}</th>" for key in (rows[0] if rows else ()))
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
        more = f"<p>and {len(rows) - 50} more</p>" if len(rows) > 50 else ""
        return f"<table><tr>{head}</tr>{body}</table>{more}"


def predict_run(
    task: Task,
    model: torch.nn.Module,
    path: str | Path,
    out: str | Path | None = None,
    *,
    spec: TaskSpec | None = None,
    probabilities: bool = False,
    device: str = "auto",
    overlap: float = 0.25,
) -> PredictionResult:
    """Read ``path`` as the task prepares it, predict with ``model`` and, where ``out`` is given, write the outputs there.

    See :func:`read_images`, :func:`predict` and :func:`write_outputs` for what is read, computed, written and raised.
    """
    spec = spec or task.spec()
    images, infos = zip(*task.prepare(str(path)), strict=True)
    found = predict(model, spec, images, device, overlap)
    files = write_outputs(spec, found, infos, out, probabilities=probabilities) if out is not None else []
    return PredictionResult(spec.kind, tuple(spec.classes), tuple(infos), tuple(found), tuple(files))

"""Evaluation: a model's predictions on held-out data, which its task scores. Changes no parameter, buffer or random stream."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.task import Examples, Predictions
from pppml_core.learning.data.examples import stacked

BATCH = 32
#: windows or slices at a time, and the share of a window that its neighbour covers too.
WINDOWS, OVERLAP = 16, 0.25


class Remembered:
    """Examples whose transformed images and targets are made once; for held-out data, which are never augmented."""

    def __init__(self, examples: Examples) -> None:
        self.inner, self._made = examples, dict[int, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]()
        self.groups = examples.groups

    def __len__(self) -> int:
        return len(self.inner)

    def example(self, index: int, augment: np.random.Generator | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The same arrays each time."""
        if augment is not None:
            return self.inner.example(index, augment)
        if index not in self._made:
            self._made[index] = self.inner.example(index)
        return self._made[index]

    def labels(self) -> npt.NDArray[np.int64]:
        """The inner examples'."""
        return self.inner.labels()


def _batches(examples: Examples) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    for start in range(0, len(examples), BATCH):
        pairs = [examples.example(i) for i in range(start, min(start + BATCH, len(examples)))]
        images, targets = stacked(pairs)
        yield torch.from_numpy(images), targets


def segment(
    model: torch.nn.Module, images: torch.Tensor, size: tuple[int, ...], device: str | torch.device, overlap: float = OVERLAP
) -> torch.Tensor:
    """Softmax probabilities ``(n, classes, *image size)`` of ``(n, channels, *image size)``: what is scored and what is shipped.

    Images of another size than ``size`` go through MONAI's sliding window: smaller ones are padded by repeating their edges, larger ones
    covered by windows whose probabilities are blended with Gaussian weights. Volumes given to a 2-D model are taken slice by slice along
    their last axis. Changes no mode of the model; call it without gradients.
    """
    from monai.inferers.utils import sliding_window_inference

    def probabilities(windows: torch.Tensor) -> torch.Tensor:
        return torch.softmax(model(windows).float(), dim=1)

    if images.ndim - 2 > len(size):
        slices = torch.cat([torch.movedim(volume, -1, 0) for volume in images])  # (n x depth, channels, height, width)
        together = torch.cat([segment(model, part, size, device, overlap).cpu() for part in torch.split(slices, WINDOWS)])
        return torch.movedim(together.reshape(len(images), -1, *together.shape[1:]), 1, -1)
    if tuple(images.shape[2:]) == tuple(size):
        return probabilities(images.to(device))
    # Edges are repeated where an image is smaller than a window: zero is air in one normalization and tissue in another.
    found = sliding_window_inference(
        images, size, WINDOWS, probabilities, overlap, "gaussian", padding_mode="replicate", sw_device=device, device="cpu"
    )
    assert isinstance(found, torch.Tensor)
    return found


def predict_examples(model: torch.nn.Module, examples: Examples, size: tuple[int, ...]) -> Predictions:
    """Softmax probabilities for every example, in order; images of another size go through :func:`segment`, as in prediction."""
    was_training = model.training
    reference = next((t for t in model.state_dict().values() if t.is_floating_point()), torch.zeros(1))
    probabilities, targets = [], []
    model.eval()
    with torch.no_grad():
        for images, target in _batches(examples):
            placed = images.to(reference.device, reference.dtype)
            whole = target.ndim == 1
            found = torch.softmax(model(placed).float(), dim=1) if whole else segment(model, placed, size, reference.device)
            probabilities.append(found.float().cpu().numpy())
            targets.append(target)
    model.train(was_training)
    return Predictions(np.concatenate(probabilities), np.concatenate(targets), np.asarray(examples.groups))

"""Evaluation: a model's predictions on held-out data and their scores. Changes no parameter, buffer or random stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.task import Examples, Predictions, Task
from pppml_core.learning.data.examples import stacked

BATCH = 32


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


def predict_examples(model: torch.nn.Module, examples: Examples, size: tuple[int, ...]) -> Predictions:
    """Softmax probabilities for every example, in order; larger images go through MONAI's sliding window of ``size``."""
    was_training = model.training
    reference = next((t for t in model.state_dict().values() if t.is_floating_point()), torch.zeros(1))
    probabilities, targets = [], []
    model.eval()
    with torch.no_grad():
        for images, target in _batches(examples):
            placed = images.to(reference.device, reference.dtype)
            if tuple(placed.shape[2:]) == tuple(size) or target.ndim == 1:
                logits = model(placed)
            else:
                from monai.inferers import sliding_window_inference

                logits = sliding_window_inference(placed, size, BATCH, model, overlap=0.25)
            probabilities.append(torch.softmax(logits.float(), dim=1).cpu().numpy())
            targets.append(target)
    model.train(was_training)
    return Predictions(np.concatenate(probabilities), np.concatenate(targets), np.asarray(examples.groups))


def evaluate(model: torch.nn.Module, task: Task, examples: Examples) -> dict[str, float]:
    """The task's metrics of a model on some examples."""
    scores: Mapping[str, float] = task.score(predict_examples(model, examples, task.spec().size))
    return {name: float(value) for name, value in scores.items()}

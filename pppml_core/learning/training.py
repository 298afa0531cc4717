"""A site's training data during one round, and the local training loop.

The order of examples comes from named seeds, one permutation per (round, site, epoch); each optimizer step begins by seeding torch's
and numpy's global generators with its own name. So the result depends on nothing that ran before, on no worker count and on no
loader count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.config.run_config import OptimizerSection, TrainingSection
from pppml_core.errors import DataError
from pppml_core.interfaces.personalization import Batch, DrawnBatch, StepRule
from pppml_core.interfaces.privacy import Sample
from pppml_core.interfaces.task import Examples
from pppml_core.learning.data.examples import stacked
from pppml_core.randomness import Seeds, entropy, reseed

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}


def device_of(training: TrainingSection) -> torch.device:
    """The training device: a GPU when there is one, unless told otherwise."""
    wanted = training.device
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


@dataclass(frozen=True)
class Sampler:
    """Poisson sampling for a privacy mechanism: ``draw`` a batch; each example is in it with probability ``rate``."""

    draw: Callable[[], Sample]
    rate: float

    def steps_per_epoch(self, batches_per_step: int) -> int:
        """Steps in which as many examples are drawn, on average, as there are."""
        return steps_of_rate(self.rate, batches_per_step)


def steps_of_rate(rate: float, batches_per_step: int) -> int:
    """Steps of an epoch under Poisson sampling: public, whatever is drawn."""
    return max(1, round(1 / (rate * batches_per_step)))


def steps_per_round(training: TrainingSection, examples: int, batches_per_step: int = 1, rate: float | None = None) -> int:
    """Optimizer steps of one local round; the batches of an epoch's last step may be smaller. ``rate``: of Poisson sampling."""
    if training.steps is not None:
        return training.steps
    epochs = 1 if training.epochs is None else training.epochs
    if rate is not None:
        return epochs * steps_of_rate(rate, batches_per_step)
    return epochs * len(step_ends(examples, training.batch_size, batches_per_step))


def step_ends(examples: int, batch_size: int, batches_per_step: int) -> list[npt.NDArray[np.int64]]:
    """Ends of the batches of each step of one pass: positions ``(batches_per_step + 1,)``, so that the batches have no example in common.

    The last step shares out what is left evenly; fewer examples than batches are left over.
    """
    size = min(batch_size, examples // batches_per_step)
    if size == 0:
        text = f"a step needs {batches_per_step} batches without an example in common, and there are {examples} training examples"
        raise DataError(text, place="training data", hint="leave this site out, or use a rule that takes one batch")
    whole, left = divmod(examples, size * batches_per_step)
    sizes = [np.full(batches_per_step, size)] * whole
    if left >= batches_per_step:
        sizes.append(np.array([left // batches_per_step + (i < left % batches_per_step) for i in range(batches_per_step)]))
    ends = np.cumsum([0, *np.concatenate(sizes)])
    return [ends[i * batches_per_step : (i + 1) * batches_per_step + 1] for i in range(len(sizes))]


def learning_rate_factor(training: TrainingSection, round: int, rounds: int) -> float:
    """Factor of the schedule on the learning rate in this round (counted from 1).

    ``cosine`` falls from 1 in the first round towards 0 after the last; ``step`` divides by ten after half and after three quarters
    of the rounds; ``warmup_rounds`` rise linearly before either.
    """
    if round <= training.warmup_rounds:
        return round / (training.warmup_rounds + 1)
    if training.schedule == "constant":
        return 1.0
    done = (round - 1 - training.warmup_rounds) / max(1, rounds - training.warmup_rounds)
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def make_optimizer(parameters: Iterable[torch.nn.Parameter], section: OptimizerSection, factor: float = 1.0) -> torch.optim.Optimizer:
    """The configured torch optimizer with its learning rate scaled by ``factor``."""
    lr = section.lr * factor
    if section.use == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=section.momentum, weight_decay=section.weight_decay)
    kind = torch.optim.Adam if section.use == "adam" else torch.optim.AdamW
    return kind(parameters, lr=lr, betas=section.betas, weight_decay=section.weight_decay)


def class_weights(training: TrainingSection, examples: Examples, classes: int) -> list[float] | None:
    """Loss weights per class: None, the configured list, or balanced at the site: ``n / (classes * count)``, absent classes 0."""
    if training.class_weights == "none":
        return None
    if isinstance(training.class_weights, list):
        return training.class_weights
    counts = np.zeros(classes)
    for index in range(len(examples)):
        counts += np.bincount(examples.example(index)[1].ravel(), minlength=classes)
    return [float(counts.sum() / (classes * c)) if c else 0.0 for c in counts]


#: transformed examples kept in memory by one process, all sites and splits together.
CACHE_BYTES = 4 * 2**30


def fits_cache(examples: Examples, sites: int) -> bool:
    """Whether a split's transformed examples take no more than a fair share (by site and split) of ``CACHE_BYTES``."""
    if not len(examples):
        return False
    image, target = examples.example(0)
    return len(examples) * (image.nbytes + target.nbytes) <= CACHE_BYTES // (3 * sites)


class TensorCache:
    """All transformed examples of a split as two tensors, made once."""

    def __init__(self, examples: Examples, dtype: torch.dtype, device: torch.device) -> None:
        pairs = [examples.example(i) for i in range(len(examples))]
        images, targets = stacked(pairs)
        self.images = torch.from_numpy(images).to(device, dtype)
        self.targets = torch.from_numpy(targets).to(device)


class LocalTraining:
    """One site's training data and settings during one round; implements ``interfaces.personalization.LocalData``."""

    def __init__(
        self,
        examples: Examples,
        training: TrainingSection,
        seeds: Seeds,
        *,
        site: str,
        round: int,
        rounds: int,
        cache: TensorCache | None = None,
        optimizer_state: Mapping[str, Any] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._training, self._seeds, self._sampler = training, seeds, sampler
        # One of the two: examples may share arrays with those of other parts, which a copy of the training part does not.
        self._source = examples if cache is None or training.augment else cache
        self._name = ("round", round, "site", site)
        self._factor = learning_rate_factor(training, round, rounds)
        #: the configured learning rate in this round, schedule included.
        self.learning_rate = training.optimizer.lr * self._factor
        self._device, self._dtype = device_of(training), DTYPES[training.precision]
        self._passes: dict[str, int] = {}
        self.examples = len(examples)
        self.optimizer_state = optimizer_state

    def order(self, epoch: int, purpose: str = "train") -> npt.NDArray[np.int64]:
        """The permutation of one epoch."""
        return self._seeds.generator(*self._name, purpose, "epoch", epoch).permutation(self.examples)

    def _index_batches(
        self, purpose: str, epochs: int | None, steps: int | None, batches_per_step: int = 1
    ) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Epoch and examples of each batch; the batches of one step follow each other."""
        done, epoch, cut = 0, 0, step_ends(self.examples, self._training.batch_size, batches_per_step)
        while (epochs is None or epoch < epochs) and (steps is None or done < steps):
            order = self.order(epoch, purpose)
            for ends in cut:
                if steps is not None and done >= steps:
                    return
                for start, end in itertools.pairwise(ends):
                    yield epoch, order[start:end]
                done += 1
            epoch += 1

    def _batches(self, purpose: str, epochs: int | None, steps: int | None, batches_per_step: int = 1) -> Iterator[Batch]:
        """Batches of the run's own order or, with a sampler, as many draws, each independent of all others."""
        if self._sampler is None:
            yield from self._load(self._index_batches(purpose, epochs, steps, batches_per_step), purpose)
            return
        count = steps if steps is not None else (epochs or 0) * self._sampler.steps_per_epoch(batches_per_step)
        for _ in range(count * batches_per_step):
            yield self._draw(self._sampler)

    def _draw(self, sampler: Sampler) -> DrawnBatch:
        """One Poisson sample, which may be of no example: then a batch of the right shapes all the same.

        Augmentation draws from the operating system: were it known, or a matter of the place in the batch, one example more or less
        would change what the others are, and no clip would bound that.
        """
        sample = sampler.draw()
        if isinstance(self._source, TensorCache):
            picked = torch.from_numpy(sample.indices).to(self._source.images.device)
            images, targets = self._source.images[picked], self._source.targets[picked]
        else:
            pairs = [self._source.example(int(i), secret_generator() if self._training.augment else None) for i in sample.indices]
            images, targets = self._collate(pairs) if pairs else (t[:0] for t in self._collate([self._source.example(0)]))
        return DrawnBatch(images, targets, sample.shares, lambda: self._drawn_again(sampler))

    def _drawn_again(self, sampler: Sampler) -> DrawnBatch:
        """A sample of its own makes a gradient of its own: dropout draws anew too, also where the caller has put random numbers back."""
        reseed(int.from_bytes(entropy(7)))
        return self._draw(sampler)

    def _collate(self, pairs: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]) -> Batch:
        images, targets = stacked(pairs)
        return torch.from_numpy(images).to(self._device, self._dtype), torch.from_numpy(targets).to(self._device)

    def _one(self, epoch: int, index: int, purpose: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        augment = self._seeds.generator(*self._name, purpose, "augment", epoch, index) if self._training.augment else None
        assert not isinstance(self._source, TensorCache)
        return self._source.example(index, augment)

    def _load(self, batches: Iterator[tuple[int, npt.NDArray[np.int64]]], purpose: str) -> Iterator[Batch]:
        if isinstance(self._source, TensorCache):
            for _, indices in batches:
                picked = torch.from_numpy(indices).to(self._source.images.device)
                yield self._source.images[picked], self._source.targets[picked]
            return
        if self._training.loader_workers == 0:
            for epoch, indices in batches:
                yield self._collate([self._one(epoch, int(i), purpose) for i in indices])
            return
        with ThreadPoolExecutor(self._training.loader_workers) as pool:
            ahead: list[list[Any]] = []
            for epoch, indices in batches:
                ahead.append([pool.submit(self._one, epoch, int(i), purpose) for i in indices])
                if len(ahead) > self._training.loader_workers:
                    yield self._collate([f.result() for f in ahead.pop(0)])
            for futures in ahead:
                yield self._collate([f.result() for f in futures])

    def _seeded(self, batches: Iterator[T], purpose: str) -> Iterator[T]:
        for step, batch in enumerate(batches):
            # Under a privacy mechanism nobody may know what dropout draws, see `_draw`.
            secret = self._sampler is not None
            reseed(int.from_bytes(entropy(7)) if secret else self._seeds.integer(*self._name, purpose, "step", step))
            yield batch

    def batches(self) -> Iterator[Batch]:
        """The configured epochs or steps. A second pass in one round draws a new order."""
        purpose, epochs, steps = self._pass("train", None, None)
        return self._seeded(self._batches(purpose, epochs, steps), purpose)

    def _pass(self, purpose: str, epochs: int | None, steps: int | None) -> tuple[str, int | None, int | None]:
        """The name of the next pass for a purpose, and how long it is."""
        number = self._passes.get(purpose, 0)
        self._passes[purpose] = number + 1
        if epochs is None and steps is None:
            epochs, steps = self._training.epochs, self._training.steps
        return f"{purpose}-{number}" if number else purpose, 1 if epochs is None and steps is None else epochs, steps

    def sample(self, purpose: str, count: int) -> Iterator[Batch]:
        """``count`` batches for a purpose of their own."""
        return self._seeded(self._batches(purpose, None, count), purpose)

    def train(
        self,
        model: torch.nn.Module,
        rule: StepRule,
        *,
        parameters: list[torch.nn.Parameter] | None = None,
        batches_per_step: int = 1,
        lr: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        purpose: str = "train",
    ) -> dict[str, float]:
        """The configured training in place: returns ``{"loss": mean over examples seen}`` (empty when no step was made)."""
        model.train()
        section = self._training.optimizer if lr is None else self._training.optimizer.model_copy(update={"lr": lr})
        optimizer = make_optimizer(parameters if parameters is not None else model.parameters(), section, self._factor)
        if (kept := (self.optimizer_state or {}).get(purpose)) is not None:
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(_from_plain(kept))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # the schedule belongs to the round, not to the state
        name, epochs, steps = self._pass(purpose, epochs, steps)
        batches = self._batches(name, epochs, steps, batches_per_step)
        total, seen = 0.0, 0
        for together in self._seeded(_by(batches, batches_per_step), name):
            examples = sum(len(images) for images, _ in together)
            total += rule(model, together if batches_per_step > 1 else together[0]) * examples
            seen += examples
            optimizer.step()
        if self._training.keep_optimizer:
            self.optimizer_state = {**(self.optimizer_state or {}), purpose: _to_plain(optimizer.state_dict())}
        return {"loss": total / seen} if seen else {}


def secret_generator() -> np.random.Generator:
    """A numpy generator that nobody can foresee, seeded by the operating system."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(entropy(16))))


def _by(batches: Iterator[Batch], count: int) -> Iterator[tuple[Batch, ...]]:
    """``count`` batches at a time."""
    while together := tuple(itertools.islice(batches, count)):
        yield together


def _to_plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state as data the codec can carry (string keys; tensors as arrays; settings are the config's)."""
    moments = {
        str(index): {n: (v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v) for n, v in entry.items()}
        for index, entry in state["state"].items()
    }
    return {"state": moments, "groups": [{"params": list(g["params"]), "rest": _settings(g)} for g in state["param_groups"]]}


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k != "params"}


def _from_plain(plain: Mapping[str, Any]) -> dict[str, Any]:
    state = {
        int(index): {n: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for n, v in entry.items()}
        for index, entry in plain["state"].items()
    }
    return {"state": state, "param_groups": [{**g["rest"], "params": g["params"]} for g in plain["groups"]]}

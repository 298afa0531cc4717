"""``TaskSuite``: what every task must do. Splits that share no patient, examples as declared, scores that mean something."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pppml_core.interfaces.task import SPLITS, Examples, Predictions, SiteData, Split, Task, TaskSpec
from pppml_core.testing.streams import random_streams
from pppml_core.testing.suite import Suite

SLUG = re.compile(r"[a-z0-9_]{1,64}")


class TaskSuite(Suite):
    """Subclass it with ``component`` and a ``config`` that makes a small data set.

    ``looked_at``: how many examples of each split have their pixels looked at. ``site_limit``: how many sites are looked at.
    """

    looked_at: ClassVar[int] = 12
    site_limit: ClassVar[int] = 6
    _held: ClassVar[dict[str, SiteData]] = {}

    # -- helpers ----------------------------------------------------------------------------------------------------------------------

    def some_sites(self, task: Task) -> list[str]:
        """The first sites' slugs."""
        return [site.slug for site in task.sites()][: self.site_limit]

    def data(self, site: str) -> SiteData:
        """One site's data, loaded once for all tests of the class."""
        held: dict[str, SiteData] = vars(type(self)).get("_held", {})
        if site not in held:
            held[site] = self.make().load(site)
            type(self)._held = held
        return held[site]

    def parts(self, *, anew: bool = False) -> Iterator[tuple[str, Split, Examples, TaskSpec]]:
        """``(site, split, examples, spec)`` of all splits; ``anew``: by a task of its own, loaded again."""
        task = self.make()
        for site in self.some_sites(task):
            data = task.load(site) if anew else self.data(site)
            for split in SPLITS:
                yield site, split, data.part(split), task.spec()

    def indices(self, examples: Examples) -> list[int]:
        """Some examples, spread over the split."""
        return sorted({int(i) for i in np.linspace(0, len(examples) - 1, min(self.looked_at, len(examples)))}) if len(examples) else []

    def truth(self) -> tuple[Task, npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Targets and groups of examples of the first site, every class among them where the site has it."""
        task = self.make()
        data = self.data(self.some_sites(task)[0])
        examples = data.test if len(data.test) else data.train
        labels = np.asarray(examples.labels())
        first = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)]
        shape = tuple(examples.example(first[0])[1].shape)
        chosen = [i for i in dict.fromkeys([*first, *self.indices(examples)]) if tuple(examples.example(i)[1].shape) == shape]
        targets = np.stack([examples.example(i)[1] for i in chosen])
        return task, targets, np.asarray(examples.groups)[chosen]

    # -- what it says -----------------------------------------------------------------------------------------------------------------

    def test_is_a_task(self) -> None:
        """If this fails: ``target`` must name a subclass of ``Task``, and ``misfits`` must be empty for the suite's settings."""
        task = self.make()
        assert isinstance(task, Task)
        assert task.misfits() == []

    def test_spec(self) -> None:
        """If this fails: see ``TaskSpec``: two classes or more, positive sizes, the primary metric among the metrics, ordered ranges."""
        spec = self.make().spec()
        assert spec == self.make().spec()
        assert spec.kind in ("classification", "segmentation")
        assert spec.channels >= 1
        assert len(spec.size) in (2, 3)
        assert all(isinstance(side, int) and side >= 1 for side in spec.size)
        assert len(set(spec.classes)) == len(spec.classes) >= 2
        assert spec.model
        assert spec.primary_metric in spec.metrics
        assert all(low < high for low, high in spec.metrics.values())
        assert spec.spacing_mm is None or (len(spec.spacing_mm) == len(spec.size) and min(spec.spacing_mm) > 0)

    def test_sites_have_slugs(self) -> None:
        """If this fails: make slugs with ``interfaces.task.unique_slugs``; they are file names and addresses."""
        sites = self.make().sites()
        slugs = [site.slug for site in sites]
        assert slugs, "no site"
        assert all(SLUG.fullmatch(slug) and slug != "server" for slug in slugs), slugs
        assert len(set(slugs)) == len(slugs), f"doubled: {slugs}"
        assert all(site.name.strip() for site in sites)
        assert sites == self.make().sites()

    def test_card_is_complete(self) -> None:
        """If this fails: say what the data are, under which licence, and how to get them."""
        card = self.make().card()
        for name in ("title", "about", "licence", "how_to_get"):
            assert getattr(card, name).strip(), f"the card has no {name}"

    # -- the data ---------------------------------------------------------------------------------------------------------------------

    def test_splits_share_no_group(self) -> None:
        """If this fails: one patient lies in two splits; split with ``learning.data.splits.hold_out``, by group."""
        task = self.make()
        for site in self.some_sites(task):
            data = self.data(site)
            groups = {split: {str(g) for g in data.part(split).groups} for split in SPLITS}
            for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
                both = groups[one] & groups[other]  # type: ignore[index]
                assert not both, f"{site}: {sorted(both)[:3]} in {one} and {other}"

    def test_splits_are_not_empty(self) -> None:
        """If this fails: a site needs examples to train on, to choose by and to be tested on."""
        for site, split, examples, _ in self.parts():
            assert len(examples) > 0, f"{site} has no {split} examples"
            assert len(examples.groups) == len(examples), f"{site}, {split}: one group for each example"

    def test_examples_are_as_declared(self) -> None:
        """If this fails: images are finite float32 ``(channels, *size)``, targets int64 below the number of classes."""
        for site, split, examples, spec in self.parts():
            for index in self.indices(examples):
                image, target = examples.example(index)
                place = f"{site}, {split}, example {index}"
                assert image.dtype == np.float32, place
                assert target.dtype == np.int64, place
                assert image.shape[0] == spec.channels, place
                if split == "train" or spec.kind == "classification":
                    assert image.shape[1:] == spec.size, place
                assert len(image.shape) == 1 + len(spec.size), place
                assert target.shape == (() if spec.kind == "classification" else image.shape[1:]), place
                assert np.isfinite(image).all(), f"{place}: NaN or infinity"
                assert target.min() >= 0, place
                assert target.max() < len(spec.classes), f"{place}: label {target.max()} with {len(spec.classes)} classes"

    def test_labels_fit_the_targets(self) -> None:
        """If this fails: ``labels()`` is the class of each example, or 1 where a mask has any foreground."""
        for site, split, examples, spec in self.parts():
            labels = examples.labels()
            assert labels.shape == (len(examples),), f"{site}, {split}"
            assert labels.dtype == np.int64, f"{site}, {split}"
            for index in self.indices(examples):
                target = examples.example(index)[1]
                wanted = int(target) if spec.kind == "classification" else int((target > 0).any())
                assert labels[index] == wanted, f"{site}, {split}, example {index}"

    def test_loading_is_deterministic(self) -> None:
        """If this fails: the same settings must give the same examples, in any order of access, and touch no global random stream."""
        streams = random_streams()
        for (site, split, one, _), (_, _, other, _) in zip(self.parts(anew=True), self.parts(anew=True), strict=True):
            assert list(map(str, one.groups)) == list(map(str, other.groups)), f"{site}, {split}"
            backwards = {index: other.example(index) for index in reversed(self.indices(other))}
            for index in self.indices(one):
                assert _same(one.example(index), backwards[index]), f"{site}, {split}, example {index}"
                assert _same(one.example(index), one.example(index)), f"{site}, {split}, example {index}, read twice"
        assert streams == random_streams(), "a global random stream moved"

    def test_augmentation_draws_from_its_generator(self) -> None:
        """If this fails: augmentation must be a function of the example and the generator, and keep shape, dtype and labels in range."""
        task = self.make()
        spec, examples = task.spec(), self.data(self.some_sites(task)[0]).train
        for index in self.indices(examples):
            # Copies: an example may be a view of what is stored.
            plain = copy.deepcopy(examples.example(index))
            one, other = (copy.deepcopy(examples.example(index, np.random.Generator(np.random.PCG64(index)))) for _ in range(2))
            assert _same(one, other), f"example {index}"
            assert one[0].shape == plain[0].shape, f"example {index}"
            assert one[0].dtype == np.float32, f"example {index}"
            assert one[1].dtype == np.int64, f"example {index}"
            assert 0 <= one[1].min() <= one[1].max() < len(spec.classes), f"example {index}"
            assert _same(plain, examples.example(index)), f"example {index}: augmentation changed what is stored"

    def test_sites_differ(self) -> None:
        """If this fails: two sites have the same training images; a site must not see another's data."""
        task = self.make()
        seen: dict[bytes, str] = {}
        for site in self.some_sites(task):
            train = self.data(site).train
            images = b"".join(train.example(i)[0].tobytes() for i in self.indices(train))
            assert images not in seen, f"{site} and {seen[images]} have the same training images"
            seen[images] = site

    # -- loss and score ---------------------------------------------------------------------------------------------------------------

    def probabilities(self, targets: npt.NDArray[np.int64], classes: int, *, right: bool) -> npt.NDArray[np.float32]:
        """One-hot probabilities, of the right class or of the next one, shape ``(n, classes, *size)``."""
        chosen = targets if right else (targets + 1) % classes
        return np.moveaxis(np.eye(classes, dtype=np.float32)[chosen], -1, 1)

    def test_scores_of_perfect_and_worst_predictions(self) -> None:
        """If this fails: ``score`` must give every declared metric within its range (or NaN), and the best primary value to the truth."""
        task, targets, groups = self.truth()
        spec = task.spec()
        scores = {}
        for right in (True, False):
            predictions = Predictions(self.probabilities(targets, len(spec.classes), right=right), targets, groups)
            scores[right] = task.score(predictions)
            assert set(scores[right]) == set(spec.metrics), f"declared {sorted(spec.metrics)}, scored {sorted(scores[right])}"
            for name, value in scores[right].items():
                low, high = spec.metrics[name]
                assert math.isnan(value) or low - 1e-9 <= value <= high + 1e-9, f"{name} = {value} is outside [{low}, {high}]"
        best, worst = scores[True][spec.primary_metric], scores[False][spec.primary_metric]
        assert best == pytest.approx(spec.metrics[spec.primary_metric][1]), f"perfect predictions score {best}"
        assert worst < best, f"the worst predictions score {worst}, perfect ones {best}"

    def test_score_does_not_depend_on_order(self) -> None:
        """If this fails: a metric depends on the order of examples; group them by ``groups``."""
        task, targets, groups = self.truth()
        generator = np.random.Generator(np.random.PCG64(0))
        logits = generator.standard_normal((len(targets), len(task.spec().classes), *targets.shape[1:]))
        probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        order = generator.permutation(len(targets))
        one = task.score(Predictions(probabilities, targets, groups))
        other = task.score(Predictions(probabilities[order], targets[order], groups[order]))
        assert one == pytest.approx(other, nan_ok=True)

    def test_loss_is_finite_and_differentiable(self) -> None:
        """If this fails: ``loss`` is a finite 0-d tensor with finite gradients, smaller for right outputs than for wrong ones."""
        task, targets, _ = self.truth()
        classes = len(task.spec().classes)
        labels = torch.from_numpy(targets)
        outputs = torch.zeros((len(targets), classes, *targets.shape[1:]), requires_grad=True)
        loss = task.loss(outputs, labels)
        assert loss.ndim == 0
        assert torch.isfinite(loss)
        loss.backward()
        assert outputs.grad is not None
        assert torch.isfinite(outputs.grad).all()
        assert torch.count_nonzero(outputs.grad) > 0
        right, wrong = (task.loss(8 * torch.from_numpy(self.probabilities(targets, classes, right=r)), labels) for r in (True, False))
        assert right < loss < wrong
        weighted = task.loss(outputs, labels, torch.ones(classes))
        assert torch.isfinite(weighted)


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return bool(np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1]))

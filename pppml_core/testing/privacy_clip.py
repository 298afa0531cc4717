"""The clip against an adversary who chooses the examples: what one of them can move, in the integers that are released."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import DrawnBatch
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.learning.gradients import PlainGradients
from pppml_core.testing.privacy_bench import LENGTH, PrivacyBench, Vector, batch_of, claims, line, mean_output

Images = npt.NDArray[np.float32]
#: relative error of float32 gradients against a loop over examples.
AGREEMENT = 1e-4


class PrivacyClip(PrivacyBench):
    """The part of :class:`~pppml_core.testing.PrivacySuite` about sensitivity."""

    def clipping(self, plan: PrivacyPlan) -> PrivacyPlan:
        """The plan whose rule clips and adds no noise: the usual one, where noise is added later; else that of ``quiet``."""
        if not self.noise_in_rule or not claims(plan.statement):
            return plan
        if self.quiet is None:
            pytest.skip("its rule always adds noise (give quiet)")
        return self.plan(self.quiet)

    def released(self, plan: PrivacyPlan, rule: PrivacyPlan, images: Images, shares: npt.NDArray[np.float64] | None = None) -> Vector:
        """What a batch of these gradients adds to the integers of a sum, before noise, in steps. ``rule``: see :meth:`clipping`."""
        try:
            update = self.update(rule, images, shares)
            return update / self.step(plan) if self.noise_in_rule else self.integers(plan, update)
        except PppmlError as error:
            raise AssertionError(f"a site that stops tells that it has such an example: {error}") from error

    def near(self, one: Vector, other: Vector, stated: float, what: str) -> None:
        """Assert that two neighbours are no farther apart than is stated."""
        assert np.isfinite(one).all(), f"{what}: not finite"
        assert np.isfinite(other).all(), f"{what}: not finite"
        distance = float(np.linalg.norm(one - other))
        assert distance <= stated * (1 + 1e-9), f"{what}: {distance:.6g} steps apart, and {stated:.6g} are stated"

    def test_one_example_moves_the_sum_by_no_more_than_is_stated(self) -> None:
        """If this fails: an example moves the released integers by more than the stated sensitivity, rounding included.

        Clip each example's gradient, not the batch's sum or mean; divide by a public number, not by how many were drawn; an example whose
        gradient is not finite adds nothing and takes nothing away from the others.
        """
        plan = self.of_examples()
        rule, clip, stated = self.clipping(plan), self.clip(plan), self.stated(plan).sensitivity
        for base_name, base in bases(clip):
            without = self.released(plan, rule, base)
            for name, one in extras(clip):
                with_it = self.released(plan, rule, np.concatenate([base, one[None]]))
                self.near(with_it, without, stated, f"{name} added to {base_name}")

    def test_the_shares_of_a_patient_are_one_clip(self) -> None:
        """If this fails: the rule overlooks the batch's ``shares``, so that a patient of five images moves the sum five times."""
        plan = self.of_examples()
        if plan.sample_rate is None:
            pytest.skip("it draws no batches")
        rule, clip, stated = self.clipping(plan), self.clip(plan), self.stated(plan).sensitivity
        for name, one in extras(clip):
            five = np.repeat(one[None], 5, axis=0)
            with_them, without = self.released(plan, rule, five, np.full(5, 0.2)), self.released(plan, rule, five[:0])
            self.near(with_them, without, stated, f"five images of a patient, {name}")

    def test_one_site_moves_the_sum_by_no_more_than_is_stated(self) -> None:
        """If this fails: a site's update moves the released integers by more than the stated sensitivity against no update at all.

        ``constrain`` must bound updates of every size, and turn those that are not finite into something that is, without an error.
        """
        plan = self.plan()
        if plan.statement.unit != "site":
            pytest.skip("its protected unit is in a gradient, not a whole update")
        nothing, stated = self.integers(plan, np.zeros(LENGTH)), self.stated(plan).sensitivity
        for name, one in extras(self.clip(plan)):
            try:
                moved = self.integers(plan, one.astype(np.float64))
            except PppmlError as error:
                raise AssertionError(f"{name}: a site that stops tells that its update is such: {error}") from error
            self.near(moved, nothing, stated, name)

    def test_an_ordinary_unit_counts(self) -> None:
        """If this fails: the gradient (or update) of an ordinary example (or site) is lost, even one at the clip."""
        plan = self.plan()
        one = unit(1) * np.float32(self.clip(plan))
        if plan.statement.unit == "site":
            moved = self.integers(plan, one.astype(np.float64)) - self.integers(plan, np.zeros(LENGTH))
        else:
            rule = self.clipping(plan)
            moved = self.released(plan, rule, one[None]) - self.released(plan, rule, one[None][:0])
        assert np.linalg.norm(moved) > 0.1 * self.stated(plan).sensitivity

    def test_gradients_equal_a_loop_over_examples(self) -> None:
        """If this fails: the rule's gradient is not a fixed multiple of the sum of clipped gradients of single examples.

        The multiple (one over a public number) is the same for every batch, also for one that is empty. Override ``clipped`` for another
        clipping than to the norm of the whole gradient.
        """
        plan = self.clipping(self.of_examples())
        generator = np.random.Generator(np.random.PCG64(2))
        ratios = []
        for count in (1, 6, 0, 3):
            images = torch.from_numpy(generator.standard_normal((count, 1, 8, 8)).astype(np.float32))
            targets = torch.arange(count) % 3
            batch = (images, targets) if plan.sample_rate is None else DrawnBatch(images, targets, np.ones(count))
            made = -self.gradient(plan, batch, self.network(), uneven)
            expected = -self.loop(images, targets, self.clip(plan))
            if not count:
                assert not made.any(), "an empty batch has a gradient"
                continue
            ratios.append(float(made @ expected / (expected @ expected)))
            rest = float(np.linalg.norm(made - ratios[0] * expected) / np.linalg.norm(ratios[0] * expected))
            assert rest < AGREEMENT, f"a batch of {count} differs from the loop by {rest:.2g} (after {ratios[0]:.4g} for all batches)"
        assert ratios[0] > 0, "gradients point the wrong way"

    def loop(self, images: torch.Tensor, targets: torch.Tensor, clip: float) -> Vector:
        """The sum of clipped gradients by one backward pass for each example."""
        model = self.network().train()
        total = [torch.zeros_like(p) for p in model.parameters()]
        for image, target in zip(images, targets, strict=True):
            loss = uneven(model(image[None]), target[None])
            for summed, part in zip(total, self.clipped(torch.autograd.grad(loss, list(model.parameters())), clip), strict=True):
                summed += part
        return np.concatenate([t.double().numpy().ravel() for t in total])

    def test_a_sample_pays_for_one_gradient(self) -> None:
        """If this fails: a second gradient of one Poisson sample, or one of a batch that was not drawn, is made and not refused.

        The charge is for fresh samples. Mark a batch as ``used`` and raise a ``PppmlError``; a rule that wants more takes ``fresh(batch)``.
        """
        plan = self.plan(gradient_calls=2)
        if plan.sample_rate is None or not claims(plan.statement):
            pytest.skip("it draws no batches, or claims nothing")
        images, targets = batch_of(plan, unit(1)[None])
        rule, drawn = plan.gradient_rule(PlainGradients(mean_output)), DrawnBatch(images, targets, np.ones(1))
        rule(line(), drawn)
        for batch, what in ((drawn, "a batch that was used"), ((images, targets), "a batch that was not drawn")):
            try:
                rule(line(), batch)
            except PppmlError:
                continue
            raise AssertionError(f"{what} gave a gradient")

    def test_the_rule_leaves_the_weights_alone(self) -> None:
        """If this fails: the rule changes weights. It sets ``.grad``; moving is the optimizer's part."""
        plan = self.of_examples()
        model = line()
        self.gradient(plan, batch_of(plan, unit(1)[None]), model, mean_output)
        assert not any(p.detach().any() for p in model.parameters())


def uneven(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy, in which classes count so unevenly that some gradients are below a clip and some above."""
    each = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    return (each * torch.tensor([0.02, 1.0, 50.0])[targets]).mean()


def unit(number: int) -> Images:
    """A direction, float32 ``(LENGTH,)`` of norm 1."""
    vector = np.random.Generator(np.random.PCG64(number)).standard_normal(LENGTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def bases(clip: float) -> list[tuple[str, Images]]:
    """Batches that an example is added to."""
    along = np.float32(clip) * unit(1)
    mixed = np.stack([np.float32(scale * clip) * unit(number) for number, scale in enumerate((0.01, 0.5, 2.0, 100.0))])
    huge, broken = 1e30 * unit(5), along.copy()
    broken[3] = np.nan
    return [
        ("an empty batch", along[None][:0]),
        ("one example", along[None]),
        ("eight alike", np.repeat(2 * along[None], 8, axis=0)),
        ("four that differ", mixed),
        ("a huge one and another", np.stack([huge.astype(np.float32), along])),
        ("one that is not finite and another", np.stack([broken, along])),
    ]


def extras(clip: float) -> Iterator[tuple[str, Images]]:
    """Gradients of an adversary's example: float32 ``(LENGTH,)``."""
    against = -np.float32(10 * clip) * unit(1)
    one_place = np.zeros(LENGTH, np.float32)
    one_place[7] = 1e20
    yield "one of the clip", np.float32(clip) * unit(1)
    yield "one against the others", against
    yield "one in another direction", np.float32(3 * clip) * unit(9)
    yield "a huge one", (1e30 * unit(2)).astype(np.float32)
    yield "the largest there is", np.full(LENGTH, np.finfo(np.float32).max, np.float32)
    yield "a tiny one", (1e-40 * unit(2)).astype(np.float32)
    yield "zeros", np.zeros(LENGTH, np.float32)
    yield "one coordinate", one_place
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("minus infinity", -np.inf)):
        broken = np.float32(clip) * unit(1)
        broken[0] = value
        yield f"one with {name}", broken
    yield "nothing but NaN", np.full(LENGTH, np.nan, np.float32)

"""Local training on batches that a privacy mechanism draws: what is drawn is what is trained on, and how often is public."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.config.run_config import TrainingSection
from pppml_core.interfaces.personalization import DrawnBatch, fresh
from pppml_core.interfaces.privacy import Sample
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.training import LocalTraining, Sampler, TensorCache, steps_per_round
from pppml_core.randomness import Seeds, seeded

#: how the images of a batch come: read one by one, by threads that read ahead, from memory.
WAYS = pytest.mark.parametrize("way", [{}, {"loader_workers": 2}, {"loader_workers": 5}, {"cached": True}], ids=str)


def numbered(n, targets=None, augment=None):
    """Examples whose picture is their index, and whose class is its remainder by 3."""
    images = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1).repeat(2, 2).repeat(2, 3)
    return ArrayExamples(images, np.arange(n) % 3 if targets is None else targets, np.arange(n), to_image=np.asarray, augment=augment)


class Script:
    """A mechanism's draws, as a test wrote them or of random sizes: none, one, some; it remembers them."""

    def __init__(self, examples, *indices, seed=0):
        self.examples, self.script, self.generator, self.drawn = examples, list(indices), np.random.default_rng(seed), []

    def __call__(self):
        indices = np.array(self.script.pop(0), np.int64) if self.script else np.flatnonzero(self.generator.random(self.examples) < 0.3)
        self.drawn.append(Sample(indices, self.generator.uniform(0.1, 1.0, len(indices))))
        return self.drawn[-1]


def training(examples, draw=None, rate=0.25, *, cached=False, dtype=torch.float32, **settings):
    section = TrainingSection(device="cpu", **{"batch_size": 5, **settings})
    return LocalTraining(
        examples,
        section,
        Seeds(1),
        site="a",
        round=1,
        rounds=10,
        cache=TensorCache(examples, dtype, torch.device("cpu")) if cached else None,
        sampler=None if draw is None else Sampler(draw, rate),
    )


def pictures(batch):
    """The examples of a batch, read off its images."""
    return batch[0][:, 0, 0, 0].int().tolist()


@WAYS
def test_every_batch_is_a_draw_of_its_own_and_its_shares_travel_with_it(way):
    draw = Script(40, [7], [], [3, 3 + 30], range(40), [])
    batches = list(training(numbered(40), draw, steps=30, **way).batches())
    assert len(batches) == len(draw.drawn) == 30
    for batch, drawn in zip(batches, draw.drawn, strict=True):
        assert type(batch) is DrawnBatch
        assert pictures(batch) == drawn.indices.tolist()
        assert batch[1].tolist() == (drawn.indices % 3).tolist()
        assert batch.shares.dtype == np.float64
        np.testing.assert_array_equal(batch.shares, drawn.shares)
    assert len({tuple(d.indices) for d in draw.drawn[5:]}) == 25, "the draws differ"
    assert any(set(a.indices) & set(b.indices) for a, b in zip(draw.drawn[5:], draw.drawn[6:], strict=False)), "no pass over the data"


@WAYS
@pytest.mark.parametrize("masks", [False, True], ids=["classes", "masks"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_an_empty_batch_has_the_shapes_of_any_other(way, masks, precision):
    dtype = {"float32": torch.float32, "float64": torch.float64}[precision]
    examples = numbered(6, np.zeros((6, 2, 2), np.int64) if masks else None)
    data = training(examples, Script(6, [], [2, 4], []), steps=3, precision=precision, dtype=dtype, **way)
    empty, some, last = data.batches()
    assert some[0].shape == (2, 1, 2, 2)
    for batch in (empty, last):
        assert type(batch) is DrawnBatch
        images, targets = batch
        assert (images.shape, targets.shape, batch.shares.shape) == ((0, *some[0].shape[1:]), (0, *some[1].shape[1:]), (0,))
        assert (images.dtype, targets.dtype, batch.shares.dtype) == (some[0].dtype, some[1].dtype, np.dtype(np.float64))
        assert images.dtype == dtype
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 2), torch.nn.Flatten()).to(dtype)
        assert network(images).shape == (0, 3), "a network takes it as any other"


def test_an_empty_batch_of_augmented_examples():
    """The one example that gives the shapes is not seen, and its augmentation draws from no other's generator."""
    examples = numbered(4, augment=lambda image, target, generator: (image + generator.integers(100, 200), target))
    empty, one = training(examples, Script(4, [], [1]), steps=2, augment=True).batches()
    assert (len(empty[0]), len(one[0])) == (0, 1)
    assert pictures(one)[0] >= 101


def test_an_example_drawn_again_is_augmented_anew_by_nothing_that_the_seed_tells():
    """Were augmentation known, or a matter of the place in the batch, one image more would change what the others are."""
    examples = numbered(4, augment=lambda image, target, generator: (image + generator.integers(1, 2**20), target))

    def found():
        return [pictures(b)[0] for b in training(examples, Script(4, *[[2]] * 12), steps=12, augment=True).batches()]

    assert len(set(found())) > 10
    assert found() != found()


def test_dropout_under_a_mechanism_is_not_of_the_seed():
    def masks(sampler):
        data = training(numbered(4), sampler, steps=3)
        return [torch.nn.functional.dropout(torch.ones(64), 0.5).tolist() for _ in data.batches()]

    with seeded(5):
        first, second, plain, again = masks(Script(4, [0], [1], [2])), masks(Script(4, [0], [1], [2])), masks(None), masks(None)
    assert first != second
    assert plain == again, "without a mechanism a run can be repeated"


def test_one_more_gradient_is_of_a_sample_of_its_own():
    sampler = Script(6, [0, 1], [2], [3, 4, 5])
    (batch,) = training(numbered(6), sampler, steps=1).batches()
    assert [pictures(b) for b in (batch, fresh(batch), fresh(batch))] == [[0, 1], [2], [3, 4, 5]]
    plain = (torch.zeros(2, 1), torch.zeros(2))
    assert fresh(plain) is plain, "a batch that no mechanism drew may be used again"


# -- how many -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    rate=st.one_of(st.sampled_from([1.0, 0.5, 0.4, 0.3, 2 / 3, 1 / 24, 1e-3]), st.floats(1e-3, 1.0)),
    each=st.integers(1, 4),
    epochs=st.integers(0, 2),
)
def test_an_epoch_has_as_many_steps_as_draw_all_examples_once_on_average(rate, each, epochs):
    expected = max(1, round(1 / (rate * each)))
    # The number of steps is the nearest to 1 / (rate * batches of a step), as far as floats can tell.
    exact = 1 / (Fraction(rate) * each)
    assert expected == 1 or abs(expected - exact) <= Fraction(1, 2) + Fraction(1, 10**9)
    assert Sampler(lambda: None, rate).steps_per_epoch(each) == expected
    section = TrainingSection(batch_size=5, epochs=epochs)
    for examples in (1, 24, 1000):
        assert steps_per_round(section, examples, each, rate) == epochs * expected, "whatever the site's own number of examples"


@pytest.mark.parametrize(
    ("configured", "rate", "each", "steps"),
    [
        ({}, 0.25, 1, 4),
        ({"epochs": 3}, 0.25, 1, 12),
        ({"epochs": 3}, 0.25, 2, 6),
        ({"epochs": 3}, 0.25, 3, 3),
        ({"epochs": 1}, 1.0, 4, 1),
        ({"epochs": 0}, 0.25, 1, 0),
        ({"steps": 7}, 0.25, 1, 7),
        ({"steps": 7}, 0.25, 2, 7),
        ({"steps": 0}, 0.25, 1, 0),
        ({"epochs": 2}, 0.3, 1, 6),
    ],
    ids=str,
)
def test_steps_per_round_is_what_is_done_and_what_is_charged_for(configured, rate, each, steps):
    draw, seen = Script(24), []

    def rule(model, together):
        seen.append(together)
        return 1.0

    data = training(numbered(24), draw, rate, **configured)
    data.train(torch.nn.Linear(1, 1), rule, batches_per_step=each)
    assert len(seen) == steps == steps_per_round(TrainingSection(batch_size=5, **configured), 24, each, rate)
    batches = seen if each == 1 else list(chain(*seen))
    assert len(batches) == len(draw.drawn) == steps * each, "each batch of a step is a draw of its own"
    assert [pictures(b) for b in batches] == [d.indices.tolist() for d in draw.drawn]
    assert all(type(b) is DrawnBatch for b in batches)


def test_a_site_with_fewer_examples_than_batches_of_a_step_may_be_drawn_from():
    """Without sampling this is refused: the batches of one step could not be disjoint."""
    steps = []
    data = training(numbered(2), Script(2, [0], [0, 1], []), rate=1.0, steps=1)
    data.train(torch.nn.Linear(1, 1), lambda model, together: steps.append([pictures(b) for b in together]) or 0.0, batches_per_step=3)
    assert steps == [[[0], [0, 1], []]]


def test_the_loss_is_over_the_examples_that_were_drawn():
    data = training(numbered(9), Script(9, [0], [], [1, 2, 3]), steps=3)
    losses = iter([2.0, 0.0, 6.0])
    assert data.train(torch.nn.Linear(1, 1), lambda model, batch: next(losses)) == {"loss": (2 * 1 + 6 * 3) / 4}
    only_empty = training(numbered(9), Script(9, [], []), steps=2)
    assert only_empty.train(torch.nn.Linear(1, 1), lambda model, batch: 0.0) == {}


def test_batches_for_another_purpose_are_drawn_too():
    """Every gradient of training is of a sample of its own, whatever it is made for."""
    draw = Script(12)
    data = training(numbered(12), draw, steps=2)
    support, main = list(data.sample("support", 3)), list(data.batches())
    assert [pictures(b) for b in (*support, *main)] == [d.indices.tolist() for d in draw.drawn]
    assert len(draw.drawn) == 5


@WAYS
def test_without_a_sampler_batches_are_plain_pairs(way):
    for batch in training(numbered(12), epochs=1, **way).batches():
        assert type(batch) is tuple
        assert not hasattr(batch, "shares")


def test_a_part_of_a_drawn_batch_has_lost_its_shares():
    """What a rule makes of a batch by slicing or joining is a plain tuple, which a mechanism can tell."""
    batch = DrawnBatch(torch.zeros(3, 1, 2, 2), torch.zeros(3), np.ones(3))
    images, targets = batch
    assert batch == (images, targets)
    assert (batch[0] is images, batch[1] is targets, len(batch)) == (True, True, 2)
    for other in (batch[:], batch[:1], (*batch,), tuple(batch), (images, targets)):
        assert not isinstance(other, DrawnBatch)

"""Poisson sampling: each example, or each patient, is in a batch with the same probability, whatever happens to the others.

Accountants take the sampling rate at its word, so each decision is made with exactly that probability. A rate is a float64 and so a finite
binary fraction. It is compared with a uniform real number whose bits are drawn as they are needed: 64 first, 64 more where these are
equal to the first 64 of the rate. All bits come from the operating system.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import ConfigError
from pppml_core.interfaces.privacy import Sample
from pppml_core.randomness import entropy


def poisson(count: int, rate: float) -> npt.NDArray[np.int64]:
    """Those of ``0 .. count - 1`` that are drawn, each with probability exactly ``rate``, in rising order: int64 ``(drawn,)``.

    Raises ConfigError for a rate outside 0 to 1.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"a sampling rate of {rate} is not a probability", place="privacy.sample_rate", hint="use a number from 0 to 1")
    undecided = np.arange(count, dtype=np.int64)
    if rate == 1:
        return undecided
    drawn = [undecided[:0]]
    for digit in _digits(rate):
        words = _words(len(undecided))
        drawn.append(undecided[words < digit])
        undecided = undecided[words == digit]
        if not len(undecided):
            break
    # Where every digit was met, the uniform number is the rate or more: not drawn.
    return np.sort(np.concatenate(drawn))


def draw_examples(n: int, rate: float) -> Sample:
    """A batch of ``n`` examples' indices, each with probability ``rate``, each with the whole clip."""
    indices = poisson(n, rate)
    return Sample(indices, np.ones(len(indices)))


def draw_patients(groups: npt.NDArray[Any], rate: float, limit: int) -> Sample:
    """A batch in which each patient is with probability ``rate``, with at most ``limit`` images, which share one clip.

    Args:
        groups: patient of each example, shape ``(n,)``, any sortable dtype.
        rate: probability of each patient, from 0 to 1.
        limit: images of one patient, at least 1; where there are more, every choice of ``limit`` of them is equally likely.

    Returns:
        Indices in rising order; the share of an image is one over the number of images drawn of its patient.
    """
    if limit < 1:
        raise ConfigError(f"{limit} images of a patient cannot be drawn", place="privacy.images_per_patient", hint="use at least 1")
    patients, patient_of = np.unique(groups, return_inverse=True)
    taken = np.zeros(len(patients), bool)
    taken[poisson(len(patients), rate)] = True
    images = np.flatnonzero(taken[patient_of])
    owner = patient_of[images]
    order = _shuffled(owner)
    images, owner = images[order], owner[order]
    # Place of each image in its patient's shuffled row: distance from where the row begins.
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    kept = place < limit
    images, owner = images[kept], owner[kept]
    shares = 1.0 / np.bincount(owner, minlength=len(patients))[owner]
    order = np.argsort(images)
    return Sample(images[order].astype(np.int64), shares[order])


def _digits(rate: float) -> Iterator[int]:
    """The binary expansion of a rate below 1, 64 bits at a time, to its end."""
    rest = Fraction(rate)
    while rest:
        digit, rest = divmod(rest * 2**64, 1)
        yield digit


def _shuffled(owner: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """An order that sorts by owner and is uniformly random among the images of each: int64 ``(images,)``.

    Sorting by random keys is an exactly uniform permutation given that no two keys are equal, so equal ones are all drawn again.
    """
    while True:
        keys = _words(len(owner))
        order = np.lexsort((keys, owner))
        keys, ranked = keys[order], owner[order]
        if not np.any((keys[1:] == keys[:-1]) & (ranked[1:] == ranked[:-1])):
            return order


def _words(count: int) -> npt.NDArray[np.uint64]:
    """Uniform 64-bit words from the operating system."""
    return np.frombuffer(entropy(8 * count), "<u8")

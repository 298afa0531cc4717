"""How many images of each label are in a sum, from readings of its last layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Classes:
    """What one image adds to a reading, by its label.

    Args:
        means: ``(readings, classes)``.
        within: covariance of what differs between images of one label, ``(readings, readings)``.
        prevalence: how frequent each label is among public images, ``(classes,)``, each above 0.
    """

    means: Numbers
    within: Numbers
    prevalence: Numbers


def classes_of(readings: Numbers, labels: npt.NDArray[np.int64], relabelled: Numbers) -> Classes:
    """Learned of public images: ``readings`` ``(P, readings)``; ``relabelled``: means ``(classes, readings)`` for labels that none has."""
    classes = len(relabelled)
    means = np.stack([readings[labels == c].mean(axis=0) if (labels == c).any() else relabelled[c] for c in range(classes)], axis=1)
    rest = readings - means[:, labels].T
    freedom = max(1, len(readings) - len(set(labels.tolist())))
    # One image of each label is added, in all as much as one image more: no label is impossible.
    prevalence = (np.bincount(labels, minlength=classes) + 1 / classes) / (len(labels) + 1)
    return Classes(means, rest.T @ rest / freedom, prevalence)


def posterior_counts(observed: Numbers, weight: float, count: int, error: Numbers, known: Classes) -> Numbers:
    """Expected counts given what was seen, ``(classes,)``, at least 0, summing to ``count``.

    ``observed = weight * (means n + within) + error``, with ``count`` labels drawn independently at the public prevalence. Without noise
    that is the least-squares solution, for a network that predicts the same ``p`` of every image ``n = count (p - db)``; with much noise it
    is the prevalence. For one image the posterior is exact (of a Gaussian for each label); for more, labels' multinomial law is replaced by
    the Gaussian of its mean and covariance, so that the posterior mean is linear in what was seen.
    """
    noise = weight**2 * count * known.within + np.diag(error)
    if count == 1:
        rest = observed[:, None] - weight * known.means
        fit = np.log(known.prevalence) - 0.5 * np.einsum("rc,rc->c", rest, np.linalg.solve(noise, rest))
        likely = np.exp(fit - fit.max())
        return np.asarray(likely / likely.sum())
    share = known.prevalence
    before, spread = count * share, count * (np.diag(share) - np.outer(share, share))
    seen = weight * known.means
    gain = np.linalg.solve(seen @ spread @ seen.T + noise, seen @ spread).T
    found = np.maximum(before + gain @ (observed - seen @ before), 0.0)
    return np.asarray(found * count / found.sum()) if found.sum() > 0 else before


def two_stages(gradient: Numbers, count: int, impact: float, offset: Numbers) -> Numbers | None:
    """Counts of LLG (Wainakh et al. 2022, algorithm 1), ``(classes,)`` whole numbers that sum to ``count``.

    Every label with a negative gradient is there once; then, again and again, the one whose rest is the lowest.

    Args:
        gradient: of each class's bias, or row sums of the weight, ``(classes,)``.
        count: how many labels.
        impact: what one image adds to its own label, below 0. With 0 or more nothing can be told: None.
        offset: what images of other labels add, ``(classes,)``, taken off before the second stage.
    """
    if impact >= 0:
        return None
    rest, found = gradient.copy(), np.zeros(len(gradient))
    for c in np.argsort(gradient, kind="stable")[:count]:
        if gradient[c] < 0:
            found[c] += 1
            rest[c] -= impact
    rest -= offset
    while found.sum() < count:
        c = int(rest.argmin())
        found[c] += 1
        rest[c] -= impact
    return found


def whole(counts: Numbers) -> npt.NDArray[np.int64]:
    """The whole numbers of the same (whole) sum that are nearest: largest remainders."""
    floor = np.floor(counts + 1e-9).astype(np.int64)
    missing = round(float(counts.sum())) - int(floor.sum())
    floor[np.argsort(floor - counts, kind="stable")[:missing]] += 1
    return floor

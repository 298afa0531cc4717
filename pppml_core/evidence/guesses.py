"""What can be guessed without the evidence: the least that an attack must beat.

A blind guess knows everything public (:class:`.Knowledge`: other people's images, the gallery, how many images the step was made of) and
saw nothing of the run. Every guess here has the form of a :attr:`.Reconstruction.guess`, so that attack and guess are scored alike. Where
a choice is left to the guesser, the best is taken with hindsight over all victims (:mod:`.scoring`), which favours the guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.evidence.images import Numbers, to_unit
from pppml_core.interfaces.attack import Answer, Images, Knowledge

Guess = Mapping[str, Any]


def blind_images(public: Numbers, labels: npt.NDArray[np.int64], victims: npt.NDArray[np.int64]) -> dict[str, Numbers]:
    """Pictures drawn without having seen the victims, ``(n, channels, *size)`` in [0, 1] by name.

    Args:
        public: ``(P, channels, *size)`` in [0, 1], none of a victim; may be empty.
        labels: of the public images, ``(P,)``.
        victims: labels of the ``n`` victims: a blind guesser may know them, as an attack does.

    ``grey`` (0.5) and, where there are public images, ``constant`` (their mean value by channel: of all constants the one of least squared
    error), ``mean`` (of the public images), ``class mean`` (of those with the victim's label), ``neighbour`` (the public image nearest to
    that mean: the one with the least mean squared error to all others), ``class neighbour``.
    """
    shape, n = public.shape[1:], len(victims)
    made = {"grey": np.full((n, *shape), 0.5)}
    if len(public) == 0:
        return made
    mean, near = _mean_and_nearest(public)
    of_class = {int(c): _mean_and_nearest(public[labels == c]) for c in set(victims.tolist()) if (labels == c).any()}
    constant = np.broadcast_to(public.mean(axis=(0, *range(2, public.ndim)), keepdims=True)[0], shape)
    return made | {
        "constant": np.stack([constant] * n),
        "mean": np.stack([mean] * n),
        "class mean": np.stack([of_class.get(int(c), (mean, near))[0] for c in victims]),
        "neighbour": np.stack([near] * n),
        "class neighbour": np.stack([of_class.get(int(c), (mean, near))[1] for c in victims]),
    }


def as_many(public: Numbers, tries: int) -> Numbers:
    """Public images, evenly spread over the list, at most ``tries``: what a blind guesser hands in who may guess as often as the attack."""
    return public[np.unique(np.linspace(0, len(public) - 1, min(tries, len(public))).round().astype(int))] if len(public) else public


def blind_candidates(gallery: Numbers, public: Numbers) -> dict[str, Numbers]:
    """Ways to pick one of ``M`` candidates by the looks of the gallery alone, as scores ``(M,)``; uniform picking succeeds in ``1/M``.

    ``centre``: near to the gallery's mean, which finds a victim around whom look-alikes were gathered; ``edge``: far from it; ``common``
    and
    ``odd``: near to the mean of the public images, and far from it.
    """
    x = gallery.reshape(len(gallery), -1)
    made = {"centre": -np.linalg.norm(x - x.mean(axis=0), axis=1)}
    if len(public):
        made["common"] = -np.linalg.norm(x - public.reshape(len(public), -1).mean(axis=0), axis=1)
    return made | {{"centre": "edge", "common": "odd"}[name]: -score for name, score in made.items()}


def blind_labels(count: int, public: npt.NDArray[np.int64], classes: int) -> dict[str, Guess]:
    """Labels and their counts in a batch of ``count``: all of one class, for every class; and the public prevalence, as counts.

    ``public``: labels of public images, ``(P,)``; with none, classes are taken to be equally frequent. The majority is among the constants;
    which constant is best is decided with hindsight.
    """
    share = np.bincount(public, minlength=classes) / len(public) if len(public) else np.full(classes, 1.0 / classes)
    made: dict[str, Guess] = {}
    for c in range(classes):
        made[f"always {c}"] = {"labels": np.full(count, c), "counts": np.eye(classes)[c] * count}
    # As labels, the whole numbers nearest to the prevalence (largest remainders).
    wanted = share * count
    whole = np.floor(wanted).astype(int)
    whole[np.argsort(whole - wanted, kind="stable")[: count - whole.sum()]] += 1
    return made | {"prevalence": {"labels": np.repeat(np.arange(classes), whole), "counts": wanted}}


def blind_area(public: npt.NDArray[np.int64]) -> dict[str, Guess]:
    """Mean share of foreground pixels: the mean and the median over the public masks ``(P, *size)``; without any, 0 and one half."""
    areas = foreground(public)
    if len(areas) == 0:
        return {"none": {"area": 0.0}, "half": {"area": 0.5}}
    return {"mean": {"area": float(areas.mean())}, "median": {"area": float(np.median(areas))}}


def foreground(masks: npt.NDArray[np.int64]) -> Numbers:
    """Share of pixels that are foreground (above 0) in each mask, ``(n,)``."""
    return np.asarray((masks.reshape(len(masks), -1) > 0).mean(axis=1)) if len(masks) else np.zeros(0)


def blind_sites(knowledge: Knowledge) -> Numbers | None:
    """Which hospital an image is from by its looks alone, ``(queries, sites)``: scanners differ in brightness and contrast.

    Linear discriminant analysis of each image's mean, standard deviation and nine quantiles, learnt from images known to be of each
    hospital; a hospital without any is never named. None without queries or known images.
    """
    queries, known = knowledge.queries, {s: x for s, x in knowledge.sites_public.items() if s in knowledge.sites and len(x) > 1}
    if queries is None or not known:
        return None
    of_site = {s: _looks(images.images) for s, images in known.items()}
    centred = np.concatenate([x - x.mean(axis=0) for x in of_site.values()])
    scale = np.maximum(centred.std(axis=0), 1e-9)
    spread = (centred / scale).T @ (centred / scale) / len(centred)
    inverse = np.linalg.inv(spread + 1e-2 * np.eye(len(spread)))
    asked = _looks(queries.images)
    scores = np.full((len(asked), len(knowledge.sites)), -np.inf)
    for place, site in enumerate(knowledge.sites):
        if site in of_site:
            away = (asked - of_site[site].mean(axis=0)) / scale
            scores[:, place] = -np.einsum("ij,jk,ik->i", away, inverse, away)
    return np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].min() - 1.0)


def _looks(images: npt.NDArray[Any]) -> Numbers:
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    quantiles = np.quantile(x, [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99], axis=1).T
    return np.column_stack([x.mean(axis=1), x.std(axis=1), quantiles])


def labels_of(images: Images) -> npt.NDArray[np.int64]:
    """Class of each image; of a mask, whether it has any foreground. ``(n,)``."""
    t = images.targets
    return t if t.ndim == 1 else np.asarray((t.reshape(len(t), -1) > 0).any(axis=1), np.int64)


def best_guesses(
    answers: Answer, knowledge: Knowledge, victims: npt.NDArray[np.int64], mean_update: npt.NDArray[Any] | None = None
) -> dict[str, Guess]:
    """Blind guesses of one kind of answer, by name, for one victim; score each as the attack's answer is scored.

    Args:
        answers: which kind.
        knowledge: what the attack was given too.
        victims: labels of the images of the watched step, ``(n,)``; of ``images`` they choose the class mean, else their number counts.
        mean_update: the mean update over all sites, flat, which every participant of the run has; for ``update``.
    """
    low, high, public = knowledge.low, knowledge.high, knowledge.public
    if answers == "images":
        pictures = blind_images(to_unit(public.images, low, high), labels_of(public), victims)
        return {name: {"images": (low + x * (high - low)).astype(np.float32)} for name, x in pictures.items()}
    if answers == "labels":
        return blind_labels(len(victims), labels_of(public), len(knowledge.spec.classes))
    if answers == "area":
        return blind_area(public.targets)
    if answers == "candidate" and knowledge.candidates is not None:
        gallery, others = (to_unit(x.images, low, high) for x in (knowledge.candidates, public))
        return {name: {"candidate": scores} for name, scores in blind_candidates(gallery, others).items()}
    queries = 0 if knowledge.queries is None else len(knowledge.queries)
    if answers == "members":
        return {"coin": {"members": np.zeros(queries)}}
    if answers == "site":
        places = np.arange(len(knowledge.sites))
        always: dict[str, Guess] = {
            f"always {s}": {"site": np.tile((places == i) * 1.0, (queries, 1))} for i, s in enumerate(knowledge.sites)
        }
        return always | ({"looks": {"site": scores}} if (scores := blind_sites(knowledge)) is not None else {})
    if answers == "update" and mean_update is not None:
        return {"mean of all sites": {"update": np.asarray(mean_update, np.float64)}}
    return {}


def gain(score: Mapping[str, Any], metric: str, lower_is_better: bool = False) -> float | None:
    """By how much one victim's attack beats the best of its blind guesses on a metric of :func:`.score`; above 0: it does.

    A list (a number for each image) is averaged, and the best guess is taken for the whole list. None where there is nothing to compare.
    """
    rules = [rule for kind in score["blind"].values() for rule in kind.values()]
    mine, theirs = _number(score.get(metric)), [v for rule in rules if (v := _number(rule.get(metric))) is not None]
    if mine is None or not theirs:
        return None
    return min(theirs) - mine if lower_is_better else mine - max(theirs)


def _number(value: Any) -> float | None:
    numbers = [float(v) for v in (value if isinstance(value, list) else [value]) if v is not None]
    return float(np.mean(numbers)) if numbers and np.isfinite(numbers).all() else None


def _mean_and_nearest(images: Numbers) -> tuple[Numbers, Numbers]:
    mean = np.asarray(images.mean(axis=0))
    return mean, images[int(np.square(images - mean).reshape(len(images), -1).sum(axis=1).argmin())]

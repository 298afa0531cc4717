"""Scores an attack's answer for one victim. Here alone the truth is used; the attack has finished.

A victim is one watched step of one site, made of one image or several. The same measures are taken of the attack, of its controls and of
blind guesses (:mod:`.guesses`), so that all are judged alike. What they say over many victims: :func:`.summarize` and :func:`.decide`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PppmlError
from pppml_core.evidence import measures
from pppml_core.evidence.deciding import decide
from pppml_core.evidence.guesses import Guess, as_many, best_guesses, blind_candidates, foreground, labels_of
from pppml_core.evidence.images import Numbers, identify, to_unit
from pppml_core.evidence.measures import Metrics
from pppml_core.evidence.summary import summarize
from pppml_core.interfaces.attack import Answer, Images, Knowledge

__all__ = ["Metrics", "Truth", "blind_scores", "decide", "score", "summarize"]

#: rule -> metrics of that blind guess.
Rules = Mapping[str, Metrics]
#: an image counts as redrawn below this mean squared error (20 dB), and only if ...
REDRAWN_MSE = 1e-2
#: ... its error is at most half (3 dB below) that of the best blind guess for this very victim, and no look-alike fits as well.
REDRAWN_SHARE = 0.5
#: an update counts as decoded up to this relative error (L2), or within the scheme's own error, and only if ...
DECODED_ERROR = 0.01
#: ... its error is at most a tenth of the best blind guess's.
DECODED_SHARE = 0.1


@dataclass(frozen=True)
class Truth:
    """What an attack is scored against. It never sees it.

    Args:
        images: the watched step's, ``n``, in the task's units, with their targets.
        gallery: images in which each of them is to be found again, look-alikes of the same label and site, ``(M, channels, *size)``, in the
            task's units. None: no re-identification.
        places: where in ``gallery`` each of ``images`` is, ``n`` indices.
        candidate: index of the victim in ``Knowledge.candidates``.
        members: which of ``Knowledge.queries`` were trained on, bool ``(n,)``.
        sites: index in ``Knowledge.sites`` of where each query is from, ``(n,)``.
        update: the watched site's own update, flat.
        tolerance: largest error of one coordinate that the scheme itself makes of an update (rounding, approximate decryption).
        mean_update: mean update over all sites, flat: the best guess of ``update`` that any participant has.
        reader: reads lesion masks as the run's own final model does: float32 ``(n, channels, *size)`` in the task's units to ``(n,
            *size)``. For segmentation.
    """

    images: Images
    gallery: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    places: tuple[int, ...] = ()
    candidate: int | None = None
    members: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    sites: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    update: npt.NDArray[Any] | None = field(default=None, repr=False)
    tolerance: float = 0.0
    mean_update: npt.NDArray[Any] | None = field(default=None, repr=False)
    reader: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]] | None = field(default=None, repr=False)


def score(answers: Answer, guess: Guess, truth: Truth, knowledge: Knowledge, blind: Mapping[str, Rules] | None = None) -> dict[str, Any]:
    """Everything that is measured of one victim's answer.

    Args:
        answers: the kind that decides; an answer without it is scored as one that says nothing.
        guess: :attr:`.Reconstruction.guess`; further kinds in it are scored too where their truth is known.
        truth: of this victim.
        knowledge: what the attack was given.
        blind: kind -> :func:`blind_scores` of this victim, where they were computed before.

    Returns:
        Metric -> number, or list with one for each image or query; all plain data. By kind:

        ``images``: those of :func:`.drawn`, ``redrawn``; with a gallery those of :func:`.ranked`, with a reader :func:`.outlined`.
        ``candidate``: those of :func:`.ranked` as ``candidate_rank``, ``candidate_picked``, ``candidate_gallery``, lists of one.
        ``labels`` and ``counts``: :func:`.named`. ``area``: ``area_error``. ``members``: :func:`.told_members`. ``site``:
        :func:`.placed_sites`.
        ``update``: :func:`.decoded` and ``decoded``.
        And ``blind``: kind -> rule -> the same metrics of that blind guess.

        ``redrawn``: the error is below 1e-2 *and* at most half of the best blind guess's for this victim *and*, with a gallery, the victim
        is picked by it: patients look alike, so a picture of 25 dB may be one of nobody, or of another. With more pictures than victims, as
        many public images are among the blind guesses.
        ``decoded``: the relative error is at most 1 %, or no coordinate is off by more than the scheme's own error; and it is at most a
        tenth of the best blind guess's.

    Raises PppmlError where an answer's shape does not fit its kind, or the truth of ``answers`` is not given.
    """
    if not _known(answers, truth, knowledge):
        raise PppmlError(f"the truth of {answers!r} is not given", place="scoring")
    given = {kind: value for kind, value in guess.items() if value is not None and _known(kind, truth, knowledge)}
    if answers not in given and not (answers == "labels" and "counts" in given):
        given[answers] = _nothing(answers, truth, knowledge)
    kinds: list[Answer] = [kind for kind in _KINDS if kind in given or (kind == "labels" and "counts" in given)]
    rules = {kind: dict((blind or {}).get(kind) or blind_scores(kind, truth, knowledge)) for kind in kinds}
    found: Metrics = {}
    for kind in kinds:
        found |= _measured(kind, given, truth, knowledge)
    if "images" in kinds:
        if found["tries"] > len(truth.images) and len(several := as_many(_unit(knowledge.public.images, knowledge), found["tries"])):
            rules["images"]["as many public images"] = measures.drawn(several, _unit(truth.images.images, knowledge))
        best = np.min([b["mse"] for b in rules["images"].values() if "mse" in b], axis=0).tolist()
        close = [e < REDRAWN_MSE and e <= REDRAWN_SHARE * b for e, b in zip(found["mse"], best, strict=True)]
        found["redrawn"] = [c and p for c, p in zip(close, found.get("picked", close), strict=True)]
    if "update" in kinds:
        exact = found["relative_error"] <= DECODED_ERROR or found["max_error"] <= truth.tolerance
        least = min([1.0, *(b["relative_error"] for b in rules["update"].values())])
        found["decoded"] = exact and found["relative_error"] <= DECODED_SHARE * least
    return {**found, "blind": rules}


def blind_scores(answers: Answer, truth: Truth, knowledge: Knowledge) -> dict[str, Metrics]:
    """Rule -> metrics of every blind guess for this victim. They depend on no attack: compute them once and hand them to :func:`score`."""
    guesses = best_guesses(answers, knowledge, labels_of(truth.images), truth.mean_update)
    made = {rule: _measured(answers, guess, truth, knowledge) for rule, guess in guesses.items()}
    if answers == "images" and truth.gallery is not None:
        gallery, true = _unit(truth.gallery, knowledge), _unit(truth.images.images, knowledge)
        if len(others := np.delete(gallery, list(truth.places), axis=0)):
            made["mean of look-alikes"] = measures.drawn(np.stack([others.mean(axis=0)] * len(true)), true)
        # The looks of the gallery may give the victim away by themselves, without any picture.
        for rule, values in blind_candidates(gallery, _unit(knowledge.public.images, knowledge)).items():
            made[f"gallery, {rule}"] = measures.ranked(values, gallery, truth.places)
    return made


_KINDS: tuple[Answer, ...] = ("images", "labels", "area", "candidate", "members", "site", "update")


def _known(kind: str, truth: Truth, knowledge: Knowledge) -> bool:
    """Whether there is a truth to score this kind against."""
    masks = truth.images.targets.ndim > 1
    return {
        "images": True,
        "labels": not masks,
        "counts": not masks,
        "area": masks,
        "candidate": truth.candidate is not None and knowledge.candidates is not None,
        "members": truth.members is not None,
        "site": truth.sites is not None,
        "update": truth.update is not None,
    }.get(kind, False)


def _nothing(answers: Answer, truth: Truth, knowledge: Knowledge) -> Any:
    """An answer that says nothing."""
    queries = 0 if knowledge.queries is None else len(knowledge.queries)
    return {
        "images": np.zeros((0, *truth.images.images.shape[1:])),
        "labels": np.zeros(0),
        "area": 0.0,
        "candidate": np.zeros(0 if knowledge.candidates is None else len(knowledge.candidates)),
        "members": np.zeros(queries),
        "site": np.zeros((queries, max(1, len(knowledge.sites)))),
        "update": np.zeros(0 if truth.update is None else np.size(truth.update)),
    }[answers]


def _measured(kind: Answer, guess: Guess, truth: Truth, knowledge: Knowledge) -> Metrics:
    """What is measured of this kind of answer alone, without comparing it with blind guesses."""
    if kind == "images":
        given, wanted = np.asarray(guess["images"]), truth.images.images.shape[1:]
        if given.shape[1:] != wanted:
            raise PppmlError(f"reconstructions of shape {given.shape} for images of shape {wanted}", place="scoring of images")
        return _pictures(_unit(given, knowledge), truth, knowledge)
    if kind == "labels":
        return measures.named(guess.get("labels"), guess.get("counts"), labels_of(truth.images), len(knowledge.spec.classes))
    if kind == "area":
        return {"area_error": abs(float(guess["area"]) - float(foreground(truth.images.targets).mean()))}
    if kind == "candidate" and knowledge.candidates is not None and truth.candidate is not None:
        found = measures.ranked(guess["candidate"], knowledge.candidates.images, (truth.candidate,))
        return {f"candidate_{name}": value for name, value in found.items()}
    if kind == "members" and truth.members is not None:
        return measures.told_members(guess["members"], truth.members)
    if kind == "site" and truth.sites is not None:
        return measures.placed_sites(guess["site"], truth.sites)
    return measures.decoded(guess["update"], np.zeros(0) if truth.update is None else truth.update)


def _pictures(pictures: Numbers, truth: Truth, knowledge: Knowledge) -> Metrics:
    true = _unit(truth.images.images, knowledge)
    found = measures.drawn(pictures, true)
    if truth.gallery is not None:
        gallery = _unit(truth.gallery, knowledge)
        found |= measures.ranked(identify(pictures, gallery), gallery, truth.places)
    if (reader := truth.reader) is not None:
        low, high = knowledge.low, knowledge.high
        found |= measures.outlined(pictures, true, lambda x: reader((low + x * (high - low)).astype(np.float32)))
    return found


def _unit(images: npt.ArrayLike, knowledge: Knowledge) -> Numbers:
    return to_unit(images, knowledge.low, knowledge.high)

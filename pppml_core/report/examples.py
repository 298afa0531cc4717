"""Example images with truth and prediction, from ``examples.npz``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.report.figures import Picture, outline, photograph
from pppml_core.report.records import RunRecords

#: pictures of one run on a page; an even share of every site's.
LIMIT = 24


def example_pictures(run: RunRecords) -> list[tuple[Picture, str, str]]:
    """``(picture, caption, verdict)`` of each example; verdict is ``right``, ``wrong`` or empty."""
    arrays = run.examples
    if not arrays or not len(arrays["images"]):
        return []
    classes = [str(c) for c in run.part("plan", "task").get("classes") or ()]
    masks = arrays["targets"].ndim > 1
    return [_one(run, index, masks, classes) for index in _even_share([str(s) for s in arrays["sites"]], LIMIT)]


def _one(run: RunRecords, index: int, masks: bool, classes: Sequence[str]) -> tuple[Picture, str, str]:
    image, truth, prediction = (run.examples[name][index] for name in ("images", "targets", "predictions"))
    site = str(run.examples["sites"][index])
    title = run.site_names.get(site, site) + (f", {run.examples['weights'][index]} weights" if "weights" in run.examples else "")
    if masks:
        truth, prediction = _as_mask(truth), _as_mask(prediction)
        if image.ndim == 4:
            depth = int(np.argmax((truth > 0).sum(axis=(1, 2)))) if truth.any() else image.shape[1] // 2
            image, truth, prediction = image[:, depth], truth[depth], prediction[depth]
        told = f"truth {_covers(truth)}, prediction {_covers(prediction)} of the image"
        alt = f"Image of {title}, with outlines of truth and prediction: {told}."
        return outline(_displayed(image), truth, prediction, alt, title), _capital(told), ""
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    real, guess = _class_name(truth, classes), _class_name(prediction, classes)
    told = f"truth {real}, predicted {guess}"
    return photograph(_displayed(image), f"Image of {title}: {told}.", title), _capital(told), "right" if real == guess else "wrong"


def _even_share(sites: Sequence[str], limit: int) -> list[int]:
    """Indices of at most ``limit`` examples, the first of every site before the second of any."""
    seen: dict[str, int] = {}
    ranked = []
    for index, site in enumerate(sites):
        seen[site] = seen.get(site, 0) + 1
        ranked.append((seen[site], index))
    return sorted(index for _, index in sorted(ranked)[:limit])


def _displayed(image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """``(C, H, W)`` as grey ``(H, W)`` or RGB ``(H, W, 3)`` in [0, 1]; of other channel counts the middle channel."""
    shown = np.nan_to_num(np.asarray(image, dtype=np.float32))
    shown = np.moveaxis(shown, 0, -1) if len(shown) == 3 else shown[len(shown) // 2]
    low, high = float(shown.min()), float(shown.max())
    if low < -0.01 or high > 1.01:
        shown = (shown - low) / max(high - low, 1e-6)
    return np.clip(shown, 0, 1)


def _as_mask(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.nan_to_num(np.asarray(values, dtype=np.float64)).round().astype(np.int64)


def _covers(mask: npt.NDArray[np.int64]) -> str:
    share = float((mask > 0).mean())
    return "empty" if share == 0 else f"{100 * share:.1f} %" if share >= 0.001 else "below 0.1 %"


def _class_name(value: Any, classes: Sequence[str]) -> str:
    text = str(value)
    return classes[int(text)] if text.isdecimal() and int(text) < len(classes) else text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

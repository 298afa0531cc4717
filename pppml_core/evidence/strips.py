"""A strip of pictures of one cell: original, best blind guess, reconstruction; of the median victim and of the worst, never of the best.

The PNG carries its captions as text (key ``Description``, JSON: a list with ``name``, ``psnr`` in dB, where the victim was ranked among
look-alikes ``rank`` and ``gallery``, and where its lesion was read from both pictures ``dice``, a row each), so that a page can set them in
its own type and read them aloud.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pppml_core.evidence.guesses import blind_images, labels_of
from pppml_core.evidence.images import to_unit
from pppml_core.evidence.measures import paired
from pppml_core.federation.files import write_atomic

if TYPE_CHECKING:
    from pppml_core.evidence.found import Found, Picture

HEADS = ("original", "best blind guess", "reconstruction")


def write_strip(path: Path, found: Found) -> str:
    """Write a PNG; returns its file name. The worst victim is the one of whom the picture shows most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    told = captions(found)
    figure = Figure(figsize=(6.0, 0.35 + 2.0 * len(told)), layout="constrained")
    grid = np.asarray(figure.subplots(len(told), 3, squeeze=False))
    for place, (row, one) in enumerate(zip(grid, told, strict=True)):
        for axes, image, head in zip(row, panels(found.pictures[one["victim"]]), HEADS, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if place == 0:
                axes.set_title(head, fontsize=13)
        row[0].set_ylabel(one["name"], fontsize=13)
    out = io.BytesIO()
    shown = [{k: v for k, v in one.items() if k != "victim"} for one in told]
    FigureCanvasAgg(figure).print_png(out, metadata={"Description": json.dumps(shown)})  # type: ignore[no-untyped-call]
    write_atomic(path, out.getvalue())
    return path.name


def captions(found: Found) -> list[dict[str, Any]]:
    """A caption for each row: of the median victim and of the worst; of one where both are the same. Of a batch the first image counts."""
    scores = found.scores[: len(found.pictures)]
    order = np.argsort([float(s["mse"][0]) for s in scores])
    chosen = {"median victim": int(order[len(order) // 2]), "worst victim": int(order[0])}
    if len(set(chosen.values())) == 1:
        chosen = {"the victim": int(order[0])}
    return [{"name": name, "victim": place, **_caption(scores[place])} for name, place in chosen.items()]


def _caption(score: Any) -> dict[str, Any]:
    ranked = {"rank": int(score["rank"][0]), "gallery": int(score["gallery"][0])} if "rank" in score else {}
    read = {"dice": round(float(score["dice"][0]), 2)} if score.get("dice", [None])[0] is not None else {}
    return {"psnr": round(float(score["psnr"][0]), 1), **ranked, **read}


def panels(picture: Picture) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Original, the blind guess nearest to it, and the reconstruction it was paired with when it was scored, as ``imshow`` takes them."""
    original, guess, public = (
        to_unit(x, picture.low, picture.high) for x in (picture.original.images, picture.guess, picture.public.images)
    )
    blind = np.concatenate(list(blind_images(public, labels_of(picture.public), labels_of(picture.original)[:1]).values()))
    nearest = blind[int(((blind - original[:1]) ** 2).reshape(len(blind), -1).mean(axis=1).argmin())]
    return _shown(original[0]), _shown(nearest), _shown(paired(guess, original)[0])


def _shown(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Grey ``(height, width)`` or RGB ``(height, width, 3)``; of a volume its middle slice."""
    while image.ndim > 3:
        image = image[..., image.shape[-1] // 2]
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]

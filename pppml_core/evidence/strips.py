"""A strip of pictures of one cell: original, best blind guess, reconstruction; of the median victim and of the worst, never of the best."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pppml_core.evidence.guesses import blind_images, labels_of
from pppml_core.evidence.images import matched, to_unit
from pppml_core.federation.files import write_atomic

if TYPE_CHECKING:
    from pppml_core.evidence.evaluate import Found, Picture


def write_strip(path: Path, found: Found) -> str:
    """Write a PNG; returns its file name. The worst victim is the one of whom the picture shows most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    errors = [float(s["mse"][0]) for s in found.scores[: len(found.pictures)]]
    order = np.argsort(errors)
    chosen = {"median victim": int(order[len(order) // 2]), "worst victim (most was seen)": int(order[0])}
    if len(set(chosen.values())) == 1:
        chosen = {"the victim": int(order[0])}
    figure = Figure(figsize=(6.0, 2.2 * len(chosen)), layout="constrained")
    grid = np.asarray(figure.subplots(len(chosen), 3, squeeze=False))
    for row, (name, index) in zip(grid, chosen.items(), strict=True):
        score = found.scores[index]
        identity = f", rank {score['rank'][0]} of {score['gallery'][0]}" if "rank" in score else ""
        titles = (name, "best guess without attack", f"reconstruction\n{score['psnr'][0]:.1f} dB{identity}")
        for axes, image, title in zip(row, panels(found.pictures[index]), titles, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)  # type: ignore[no-untyped-call]
    write_atomic(path, out.getvalue())
    return path.name


def panels(picture: Picture) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Original, the blind guess that is nearest to it, and the reconstruction that matches it best, as ``imshow`` takes them."""
    original, guess, public = (
        to_unit(x, picture.low, picture.high) for x in (picture.original.images, picture.guess, picture.public.images)
    )
    blind = np.concatenate(list(blind_images(public, labels_of(picture.public), labels_of(picture.original)).values()))
    nearest = blind[int(((blind - original) ** 2).reshape(len(blind), -1).mean(axis=1).argmin())]
    place, _ = matched(guess, original)
    made = guess[int(place[0])] if len(guess) else np.full_like(original[0], 0.5)
    return _shown(original[0]), _shown(nearest), _shown(made)


def _shown(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Grey ``(height, width)`` or RGB ``(height, width, 3)``; of a volume its middle slice."""
    while image.ndim > 3:
        image = image[..., image.shape[-1] // 2]
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]

"""What a lying server writes into the first layer (Fowl et al. 2022, section 3).

All rows of the first layer are one query ``h``, their biases are minus ascending thresholds, so an image switches on the rows below its
value. All columns of the layer behind are one pattern, so an image sends the same factor into each row it switched on, and the difference
of two neighbouring rows of the gradient holds only the images whose value lies between their thresholds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.attack import Arrays, Knowledge
from pppml_imprint.bins import query_of, thresholds_of
from pppml_imprint.config import ImprintConfig
from pppml_imprint.first_layer import FirstLayer

#: Rows of a layer are one query when their cosines to the mean row are above this, for this share of the rows.
_ALIKE, _SHARE = 0.999, 0.9


def planted(weights: Arrays, layer: FirstLayer, config: ImprintConfig, ctx: Knowledge) -> dict[str, npt.NDArray[Any]]:
    """``weights`` with the query in the first layer; unchanged where the layer behind cannot carry it."""
    out = {name: np.array(array) for name, array in weights.items()}
    if layer.after is None or layer.after[0] not in out or layer.weight not in out or layer.bias not in out:
        return out
    images, scale = ctx.public.images, config.scale or _scale(ctx)
    query = query_of(images, config.query, ctx.seed)
    values = np.asarray(images, np.float64).reshape(len(images), -1) @ query
    thresholds = thresholds_of(values, len(out[layer.bias]), config.bins)
    _write(out, layer.weight, np.broadcast_to(scale * query, out[layer.weight].shape))
    _write(out, layer.bias, -scale * thresholds)
    # What the layer behind gets of an image is one number, the sum of the rows; it passes it on as a pattern of the images' own size.
    sums = scale * np.maximum(values[:, None] - thresholds, 0.0).sum(axis=1)
    name, bias = layer.after
    pattern = np.random.default_rng([ctx.seed, 2]).normal(size=out[name].shape[0]) * images.std() / max(float(sums.std()), 1e-30)
    _write(out, name, np.broadcast_to(pattern[:, None], out[name].shape))
    if bias is not None and bias in out:
        _write(out, bias, -pattern * sums.mean())
    return out


def _scale(ctx: Knowledge) -> float:
    """Without a clip an update should stay in the encoding's range; with one this layer should take all of the norm that is allowed."""
    return 1e-4 if ctx.told.clip is None else 1e-7


def is_planted(weights: Arrays, layer: FirstLayer) -> bool:
    """Whether the first layer holds one query and the layer behind one pattern."""
    if layer.after is None or any(name not in weights for name in (layer.weight, layer.bias, layer.after[0])):
        return False
    return _one_direction(np.asarray(weights[layer.weight])) and _one_direction(np.asarray(weights[layer.after[0]]).T)


def _one_direction(rows: npt.NDArray[Any]) -> bool:
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=0)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(mean)
    return bool((rows @ mean > _ALIKE * lengths).mean() > _SHARE) and bool(lengths.any())


def _write(out: dict[str, npt.NDArray[Any]], name: str, values: npt.NDArray[Any]) -> None:
    out[name] = np.ascontiguousarray(values, dtype=out[name].dtype)

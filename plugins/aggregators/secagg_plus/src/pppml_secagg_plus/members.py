"""Lists of sites in messages: read with care, and hashed as bitmaps over the cohort."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pppml_core.errors import WireError


def places_of(cohort: Sequence[str]) -> dict[str, int]:
    """Name -> place in the cohort, from 0. A site's point for Shamir's shares is its place + 1."""
    return {name: place for place, name in enumerate(cohort)}


def read_names(given: object, known: Sequence[str], what: str) -> tuple[str, ...]:
    """The names in ``given`` in the order of ``known``. Raises WireError unless it is a list of names, each known and each once."""
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise WireError(f"{what}: not a list of names", place=what)
    named = set(given)
    if len(named) < len(given):
        raise WireError(f"{what}: a site is named twice", place=what)
    if strange := sorted(named - set(known)):
        raise WireError(f"{what}: {', '.join(strange)[:200]} cannot be in this list", place=what)
    return tuple(name for name in known if name in named)


def read_map(given: object, names: Collection[str], what: str) -> Mapping[str, Any]:
    """``given``, if it is a map with exactly these names. Raises WireError otherwise."""
    if not isinstance(given, Mapping) or set(given) != set(names):
        raise WireError(f"{what}: not one entry for each of {', '.join(sorted(names))[:200] or 'nobody'}", place=what)
    return given


def bitmap(names: Collection[str], cohort: Sequence[str]) -> bytes:
    """One bit for each site of the cohort, in its order."""
    return np.packbits([name in names for name in cohort], bitorder="little").tobytes()

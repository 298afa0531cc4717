"""Lists of sites in messages: read with care, and hashed as bitmaps over the cohort."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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


def rows_of(items: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """Byte strings of 32 bytes as rows."""
    return np.frombuffer(b"".join(items), np.uint8).reshape(-1, 32)


def read_rows(given: object, count: int, what: str) -> list[bytes]:
    """As many rows of 32 bytes. Raises WireError for anything else."""
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8 or given.shape != (count, 32):
        raise WireError(f"{what}: not 32 bytes for each of {count} members", place=what)
    return [row.tobytes() for row in given]


def bitmap(names: Collection[str], cohort: Sequence[str]) -> bytes:
    """One bit for each site of the cohort, in its order."""
    named = frozenset(names)
    return np.packbits([name in named for name in cohort], bitorder="little").tobytes()

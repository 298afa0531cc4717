"""What both sides of a session share: the value, the rings, the encryption; and how a peer's message is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pppml_core.errors import WireError
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.values import ValueSpec
from pppml_cyclic_he.rings import Rings


@dataclass(frozen=True)
class Setting:
    """One value, one cohort, one set of encryption parameters, the same in all rings."""

    value: ValueSpec
    rings: Rings
    params: HEParams
    backend: HEBackend

    @property
    def exact(self) -> bool:
        """Whether values are residues: then they are masked, shared among the rings, and a lost round may start again."""
        return self.params.arithmetic == "exact"

    @property
    def modulus(self) -> int:
        """Of the residues; 0 where there are none."""
        return self.params.plaintext_modulus or 0

    @property
    def sum_dtype(self) -> np.dtype[Any]:
        """The smallest type that holds what an initiator releases: residues, or rounded sums."""
        if self.exact:
            return next(np.dtype(f"u{size}") for size in (1, 2, 4, 8) if self.modulus <= 2 ** (8 * size))
        largest = self.value.sum_bound(len(self.rings.order)) or 0
        return next(np.dtype(f"i{size}") for size in (1, 2, 4, 8) if largest < 2 ** (8 * size - 1))


def stage_of(ring: int) -> str:
    """The stage in which a ring, counted from 0, is walked."""
    return f"ring-{ring + 1}"


Kind = TypeVar("Kind", str, bytes, list, dict)  # type: ignore[type-arg]


def read(body: Any, name: str, kind: type[Kind], *, length: int | None = None) -> Kind:
    """A field of a peer's message. Raises WireError where it is missing, of another type or of another length."""
    value = body.get(name) if isinstance(body, Mapping) else None
    if not isinstance(value, kind) or (length is not None and len(value) != length):
        raise WireError(f"{name!r} is missing or malformed", place="cyclic-he")
    return value


def read_names(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of different names, in alphabetical order. Raises WireError for anything else."""
    names = read(body, name, list)
    if not all(isinstance(site, str) for site in names) or names != sorted(set(names)):
        raise WireError(f"{name!r} is not a sorted list of different names", place="cyclic-he")
    return tuple(names)

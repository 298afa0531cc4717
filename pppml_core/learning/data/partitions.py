"""Simulated sites: how one collection is divided among sites when the data do not say where they come from, or that is not wanted.

Each function returns one ascending index array per site; together they hold every index once.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pppml_core.errors import DataError

Indices = npt.NDArray[np.int64]
#: Draws of Dirichlet proportions before a partition is given up.
ATTEMPTS = 100


class PartitionConfig(BaseModel):
    """How a collection becomes sites: by its own sources, or simulated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["source", "iid", "dirichlet", "quantity"] = Field(
        "source",
        description="source: the sites recorded in the data; iid: a random deal; dirichlet: label skew; quantity: the size skew of the "
        "DPResNet authors' code (contiguous ranges)",
    )
    sites: int | None = Field(None, ge=1, le=100_000, description="number of simulated sites; not with `by: source`")
    alpha: float = Field(0.3, gt=0, allow_inf_nan=False, description="Dirichlet concentration; small: few classes per site")
    unit: Literal["auto", "group", "example"] = Field(
        "auto",
        description="what is dealt to simulated sites: whole groups (patients, smears) where they are known, or single examples; auto: "
        "examples for iid, so that sites really are identically distributed (one patient may then be at two sites), groups otherwise",
    )
    minimum: int = Field(5, ge=1, description="fewest training examples (groups, where they are known) of a site with `by: dirichlet`")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of partition and held-out parts; 42 with `quantity`: the authors' sizes")

    @property
    def whole_groups(self) -> bool:
        """Whether known groups are dealt whole."""
        return self.by != "iid" if self.unit == "auto" else self.unit == "group"

    @model_validator(mode="after")
    def _sites_where_simulated(self) -> Self:
        if self.by == "source" and self.sites is not None:
            raise ValueError("`by: source` takes its sites from the data; remove `sites`, or choose iid, dirichlet or quantity")
        if self.by != "source" and self.sites is None:
            raise ValueError(f"`by: {self.by}` needs `sites`, the number of sites to simulate")
        return self


def by_source(source: npt.NDArray[np.integer], sites: int | None = None) -> list[Indices]:
    """One site per source: ``source`` is ``(N,)`` integers 0 to ``sites - 1`` (default: up to the largest found)."""
    source = np.asarray(source)
    count = sites if sites is not None else (int(source.max()) + 1 if len(source) else 0)
    return [np.flatnonzero(source == i).astype(np.int64) for i in range(count)]


def iid(labels: npt.NDArray[Any], sites: int, generator: np.random.Generator) -> list[Indices]:
    """A uniformly random deal; site sizes differ by at most one. ``labels``, shape ``(N,)``, only gives the number of examples.

    Raises DataError where there are fewer examples than sites.
    """
    _enough(len(labels), sites)
    return [np.sort(part) for part in np.array_split(generator.permutation(len(labels)), sites)]


def dirichlet(
    labels: npt.NDArray[np.integer],
    sites: int,
    alpha: float,
    generator: np.random.Generator,
    *,
    minimum: int = 1,
    proportions: npt.NDArray[np.float64] | None = None,
) -> list[Indices]:
    """Label skew: for every class, the shares of the sites are drawn from Dirichlet(alpha, ..., alpha), and its examples dealt so.

    Small ``alpha`` (0.1) gives sites with few classes, large (100) nearly equal ones (Hsu et al. 2019, arXiv 1909.06335, draw per
    site; per class, as here, follows Yurochkin et al. 2019 and NIID-Bench). Counts are rounded by largest remainder.

    Args:
        labels: ``(N,)`` class indices.
        sites: number of sites.
        alpha: concentration, positive.
        generator: the only source of chance.
        minimum: examples every site must get. Shares are drawn anew, up to ``ATTEMPTS`` times, until it holds.
        proportions: ``(classes, sites)`` shares to use instead of drawing them, e.g. of the training part for the test part; ``minimum``
            is then not checked.

    Raises DataError where ``minimum`` cannot be reached.

    """
    labels = np.asarray(labels)
    if not alpha > 0:
        raise DataError(f"Dirichlet's alpha must be positive, not {alpha}", place="partition.alpha", hint="try 0.3")
    if proportions is None:
        _enough(len(labels), sites * minimum)
    classes = len(proportions) if proportions is not None else int(labels.max()) + 1
    members = [np.flatnonzero(labels == c) for c in range(classes)]
    for _ in range(ATTEMPTS):
        share = generator.dirichlet(np.full(sites, alpha), size=classes) if proportions is None else proportions
        counts = np.array([rounded(share[c], len(members[c])) for c in range(classes)])
        if proportions is not None or counts.sum(axis=0).min() >= minimum:
            break
    else:
        raise DataError(
            f"no Dirichlet({alpha:g}) draw of {ATTEMPTS} gave each of {sites} sites at least {minimum} of {len(labels)} examples",
            place="partition.alpha",
            hint="take a larger alpha, fewer sites or another partition seed",
        )
    dealt: list[list[Indices]] = [[] for _ in range(sites)]
    for c in range(classes):
        pieces = np.split(generator.permutation(members[c]), np.cumsum(counts[c])[:-1])
        for site, piece in enumerate(pieces):
            dealt[site].append(piece)
    return [np.sort(np.concatenate(pieces)).astype(np.int64) for pieces in dealt]


class Draw(Protocol):
    """What :func:`quantity` needs of a source of chance; ``numpy.random.Generator`` satisfies it."""

    def integers(self, low: int, high: int) -> Any:
        """An integer in ``[low, high)``."""


def quantity_sizes(n: int, sites: int, generator: Draw, *, spread: float = 0.5) -> list[int]:
    """Site sizes of the quantity skew of the DPResNet authors' code.

    Equal sizes (the remainder goes one by one to the last sites); then in each pair of neighbours (0 and 1, 2 and 3, ...) a number
    below ``spread * (n // sites)``, uniformly drawn, moves from the first to the second. With an odd number the last site keeps its
    size. The authors draw from numpy's legacy generator with seed 42; see :class:`AuthorsDraw`.
    """
    _enough(n, sites)
    sizes = [n // sites + (site >= sites - n % sites) for site in range(sites)]
    limit = max(1, int(n // sites * spread))
    for first in range(0, sites - 1, 2):
        moved = int(generator.integers(0, limit))
        sizes[first] -= moved
        sizes[first + 1] += moved
    return sizes


def quantity(n: int, sites: int, generator: Draw, *, spread: float = 0.5) -> list[Indices]:
    """Quantity skew: contiguous index ranges with :func:`quantity_sizes`.

    Class proportions stay equal only where the file's order is random, as in MedMNIST; in a sorted file this also skews labels.
    Raises DataError where there are fewer examples than sites.
    """
    return ranges(quantity_sizes(n, sites, generator, spread=spread))


def ranges(sizes: list[int]) -> list[Indices]:
    """Contiguous index ranges of these sizes, from 0."""
    stops = np.cumsum(sizes)
    return [np.arange(stop - size, stop, dtype=np.int64) for size, stop in zip(sizes, stops, strict=True)]


class AuthorsDraw:
    """numpy's legacy stream of a seed, local to this object: with seed 42, :func:`quantity_sizes` gives the DPResNet authors' sizes."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed)

    def integers(self, low: int, high: int) -> int:
        """An integer in ``[low, high)``."""
        return int(self._state.randint(low, high))


def shares(labels: npt.NDArray[np.integer], parts: list[Indices], classes: int) -> npt.NDArray[np.float64]:
    """Each site's share of every class, ``(classes, sites)``, rows summing to 1; a class without examples is shared by site size."""
    counts = np.stack([np.bincount(np.asarray(labels)[part], minlength=classes) for part in parts], axis=1).astype(np.float64)
    empty = counts.sum(axis=1) == 0
    counts[empty] = [max(1, len(part)) for part in parts]
    share: npt.NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return share


def rounded(weights: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Integers proportional to ``weights`` that sum to ``total``: largest remainder, the first of equals."""
    exact = weights * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def _enough(n: int, needed: int) -> None:
    if n < max(1, needed):
        raise DataError(f"{n} examples (or groups) are too few: {needed} are needed", place="partition.sites", hint="take fewer sites")

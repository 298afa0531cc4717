"""A collection: the examples of several sources before they become sites, and the way from one to the other.

A reader (npz, folder, MedMNIST) describes what it found as a :class:`Collection`, reading no pixel; :func:`assign` turns it into sites
with train, validation and test parts; :func:`site_data` reads one site's pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.interfaces.task import SPLITS, Kind, SiteData, SiteInfo, Split, unique_slugs
from pppml_core.learning.data import partitions
from pppml_core.learning.data.examples import ArrayExamples, Augment, ToImage
from pppml_core.learning.data.partitions import PartitionConfig
from pppml_core.learning.data.splits import check_groups_disjoint, hold_out, majority, units_of
from pppml_core.randomness import Seeds

Indices = npt.NDArray[np.int64]
Parts = dict[Split, Indices]


@dataclass(frozen=True)
class Collection:
    """N examples of several sources.

    Args:
        place: file or folder, for errors.
        kind: classification or segmentation.
        classes: names; index 0 is background in segmentation.
        channels: of one image.
        size: height and width of one image.
        source: ``(N,)`` int64 into ``source_names``.
        source_names: as people read them.
        groups: ``(N,)`` str: patient, smear or item of each example; examples whose patient is unknown may share one name.
        known: ``(N,)`` bool: whether ``groups`` is a real id. Only real ids bind examples together when parts are made.
        parts: the file's own split, or None. Parts may be empty.
        labels: ``(N,)`` int64 class of each example (classification), else None.
        read: indices -> ``(images, targets)``, as they are stored.
        about: a remark for each source.

    """

    place: str
    kind: Kind
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, ...]
    source: Indices
    source_names: tuple[str, ...]
    groups: npt.NDArray[np.str_]
    known: npt.NDArray[np.bool_]
    parts: Mapping[Split, Indices] | None
    labels: Indices | None
    read: Callable[[Indices], tuple[npt.NDArray[Any], npt.NDArray[Any]]]
    about: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class SiteParts:
    """One site and the indices of its three parts; ``remarks`` say what was held out because the data did not."""

    info: SiteInfo
    parts: Parts
    remarks: tuple[str, ...] = ()


def assign(
    data: Collection, partition: PartitionConfig, *, test_fraction: float = 0.2, validation_fraction: float = 0.15
) -> tuple[SiteParts, ...]:
    """Sites with their parts.

    What is guaranteed: every example is in exactly one part of one site; a known group (patient, smear) never lies in two parts, at no
    two sites either; the data's own split is kept. With ``iid``, ``dirichlet`` and ``quantity`` each part is divided among the sites
    separately, by whole groups or single examples as ``unit`` says (a group counts for its most frequent class), the validation and test
    parts with the shares of the training part; parts that the data lack are first held out as a whole. A part that a single site lacks is
    held out of its training part, class by class.

    Raises DataError: one patient in two parts, an empty site, of several sites a class without training examples, too few examples.
    """
    if len(data) == 0:
        raise DataError("there is no example", place=data.place, hint="check the path and the layout of the files")
    seeds = Seeds(partition.seed)
    if data.parts is not None:
        _check(data, data.parts)
    if partition.by == "source":
        infos = _infos(data.source_names, data.about)
        members = partitions.by_source(data.source, len(data.source_names))
        whole = data.parts or {"train": np.arange(len(data))}
        sites: list[Parts] = [{split: np.intersect1d(whole.get(split, _NONE), own) for split in SPLITS} for own in members]
    else:
        count = partition.sites or 1
        names = [f"Site {i + 1:0{len(str(count))}d}" for i in range(count)]
        infos = _infos(tuple(names), (f"simulated from {Path(data.place).name}: {_words(partition)}",) * count)
        sites = _divide(data, _split_whole(data, seeds, test_fraction, validation_fraction), partition, seeds)
    for info, site in zip(infos, sites, strict=True):
        if not sum(map(len, site.values())):
            raise DataError(f"site {info.slug!r} has no example", place=data.place, hint="remove the empty source or give it examples")
        if not len(site["train"]):
            raise DataError(f"site {info.slug!r} has no training example", place=data.place, hint="give the site examples of split `train`")
    remarks: list[list[str]] = [[] for _ in sites]
    missing: tuple[tuple[Split, float], ...] = (("test", test_fraction), ("validation", validation_fraction))
    for split, fraction in missing:
        _hold_out_missing(data, infos, sites, split, fraction, seeds, remarks)
    _check(data, {split: np.concatenate([site[split] for site in sites]) for split in SPLITS})
    if len(sites) > 1:  # (a class that one site lacks may be at another, whose data are elsewhere)
        _check_classes(data, np.concatenate([site["train"] for site in sites]))
    return tuple(SiteParts(info, site, tuple(said)) for info, site, said in zip(infos, sites, remarks, strict=True))


def site_data(data: Collection, parts: Parts, to_image: ToImage, augment: Augment | None = None) -> SiteData:
    """One site's pixels, read once for all parts. ``augment`` reaches the training part only."""
    order = np.concatenate([parts[split] for split in SPLITS])
    images, targets = data.read(order)
    stops = np.cumsum([len(parts[split]) for split in SPLITS])

    def examples(i: int) -> ArrayExamples:
        where = slice(int(stops[i]) - len(parts[SPLITS[i]]), int(stops[i]))
        # An unknown patient is no patient: one name for several such examples is one group in each part, never the same in two.
        own = data.groups[order[where]]
        groups = np.where(data.known[order[where]], own, np.char.add(f"{SPLITS[i]}:", own))
        # Copies: from a view of the training part the other parts could be reached.
        return ArrayExamples(images[where].copy(), targets[where].copy(), groups, to_image, augment if SPLITS[i] == "train" else None)

    return SiteData(*(examples(i) for i in range(len(SPLITS))))


_NONE = np.zeros(0, np.int64)


def _infos(names: tuple[str, ...], about: tuple[str, ...]) -> list[SiteInfo]:
    about = about or ("",) * len(names)
    return [SiteInfo(s, name, text) for s, name, text in zip(unique_slugs(names), names, about, strict=True)]


def _words(partition: PartitionConfig) -> str:
    skew = {"iid": "a random deal", "dirichlet": f"label skew, Dirichlet({partition.alpha:g})", "quantity": "size skew"}
    return f"{skew[partition.by]}, seed {partition.seed}"


def _check(data: Collection, parts: Mapping[Split, Indices]) -> None:
    known = {str(split): indices[data.known[indices]] for split, indices in parts.items()}
    check_groups_disjoint(data.groups, known, place=data.place)


def _check_classes(data: Collection, train: Indices) -> None:
    if data.labels is None:
        return
    counts = np.bincount(data.labels[train], minlength=len(data.classes))
    absent = [name for name, count in zip(data.classes, counts, strict=True) if count == 0]
    if absent:
        raise DataError(
            f"no site has a training example of class {', '.join(map(repr, absent))}",
            place=data.place,
            hint="remove the class, or move examples of it into the training part",
        )


def _hold(data: Collection, indices: Indices, fraction: float, generator: np.random.Generator, place: str) -> tuple[Indices, Indices]:
    """:func:`hold_out` for examples of which some have known groups and some have not: each kind by its own rule."""
    known = data.known[indices]
    kinds = [part for part in (indices[known], indices[~known]) if len(part)]
    held = []
    for part in kinds:
        groups = data.groups if data.known[part[0]] else None
        if len(kinds) > 1 and len(units_of(groups, part)) < 2:
            continue
        held.append(hold_out(part, groups, fraction, generator, labels=data.labels, place=place)[1])
    chosen = np.sort(np.concatenate(held)) if held else _NONE
    return np.setdiff1d(indices, chosen), chosen


def _split_whole(data: Collection, seeds: Seeds, test_fraction: float, validation_fraction: float) -> Parts:
    """The data's own parts; one that they lack is held out of all training data, before these are divided among simulated sites."""
    parts: Parts = {"train": np.arange(len(data))} if data.parts is None else dict(data.parts)
    missing: tuple[tuple[Split, float], ...] = (("test", test_fraction), ("validation", validation_fraction))
    for split, fraction in missing:
        if not len(parts.get(split, _NONE)):
            parts["train"], parts[split] = _hold(data, parts["train"], fraction, seeds.generator("held", split), data.place)
    return parts


def _divide(data: Collection, parts: Parts, partition: PartitionConfig, seeds: Seeds) -> list[Parts]:
    """Each part divided among simulated sites: the training part by the rule, the others with its shares."""
    count = partition.sites or 1
    # An example whose patient is unknown moves by itself.
    whole = data.known & partition.whole_groups
    groups = np.where(whole, np.char.add("id:", data.groups), np.arange(len(data)).astype(np.str_))
    if partition.by == "dirichlet" and data.labels is None:
        raise DataError("Dirichlet partitions need class labels", place=data.place, hint="use `by: source`, `iid` or `quantity`")
    labels = data.labels if data.labels is not None else np.zeros(len(data), np.int64)
    sites: list[Parts] = [{} for _ in range(count)]
    share: npt.NDArray[np.float64] | None = None
    for split in SPLITS:
        units = units_of(groups, parts.get(split, _NONE))
        kinds = majority(labels, units)
        generator = seeds.generator("partition", partition.by, split)
        if partition.by == "dirichlet":
            dealt = partitions.dirichlet(
                kinds, count, partition.alpha, generator, minimum=partition.minimum if share is None else 0, proportions=share
            )
            share = partitions.shares(kinds, dealt, len(data.classes)) if share is None else share
        elif partition.by == "quantity":
            if share is None:
                sizes = partitions.quantity_sizes(len(units), count, partitions.AuthorsDraw(partition.seed))
                share = np.array(sizes) / len(units)
            dealt = partitions.ranges(partitions.rounded(share, len(units)).tolist())
        elif split == "train":
            dealt = partitions.iid(kinds, count, generator)
        else:
            order, equal = generator.permutation(len(units)), partitions.rounded(np.full(count, 1 / count), len(units))
            dealt = [order[part] for part in partitions.ranges(equal.tolist())]
        for site, part in zip(sites, dealt, strict=True):
            site[split] = np.sort(np.concatenate([units[i] for i in part])) if len(part) else _NONE
    return sites


def _hold_out_missing(
    data: Collection, infos: list[SiteInfo], sites: list[Parts], split: Split, fraction: float, seeds: Seeds, remarks: list[list[str]]
) -> None:
    """Fill the part of every site that lacks it from its training part. A known group that is held out at one site is held out at all."""
    lacking = [i for i, site in enumerate(sites) if not len(site[split])]
    for i in lacking:
        generator = seeds.generator("held", split, infos[i].slug)
        place = f"{data.place}, site {infos[i].slug!r}"
        sites[i]["train"], sites[i][split] = _hold(data, sites[i]["train"], fraction, generator, place)
        remarks[i].append(f"{split}: {fraction:.0%} held out of the training part")
    gone = [data.groups[sites[i][split]][data.known[sites[i][split]]] for i in lacking]
    if len(gone) < 2:
        return
    travelling = np.unique(np.concatenate(gone))
    for i in lacking:
        train = sites[i]["train"]
        moves = data.known[train] & np.isin(data.groups[train], travelling)
        if moves.any():
            sites[i]["train"], sites[i][split] = train[~moves], np.union1d(sites[i][split], train[moves])
        if not len(sites[i]["train"]):
            raise DataError(
                f"all patients of site {infos[i].slug!r} were held out with those of other sites",
                place=data.place,
                hint="give a `split` array",
            )

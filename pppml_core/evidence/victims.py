"""Whose images are attacked: victims drawn by a seed, a gallery of look-alikes for each, and what the adversary has of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pppml_core.errors import ConfigError
from pppml_core.federation.assembly import Assembly
from pppml_core.interfaces.attack import Images
from pppml_core.interfaces.task import Examples, Split
from pppml_core.randomness import Seeds

#: images in a gallery, the victim's included; public images.
GALLERY, PUBLIC = 100, 200


@dataclass(frozen=True)
class Victim:
    """One attacked image.

    Args:
        batch: the watched site's batch; the first image is the victim's.
        candidates: a gallery in random order.
        place: where in it the victim is.
        look_alikes: candidates of the victim's own site and label.
        person: site and group (patient) of the victim.
    """

    batch: Images
    candidates: Images
    place: int
    look_alikes: int
    person: str


def draw_victims(parts: Assembly, site: str, count: int, batch: int, seed: int, gallery: int = GALLERY) -> list[Victim]:
    """``count`` training images of ``site``, of different patients (groups) as far as there are.

    A gallery has the victim and images of other patients: of the same site and label first, then of the same label, then of any; none that
    :func:`public_images` draws by the same seed, as who has those knows that they are no victims. The rest of a batch is drawn from the
    site's other training images. Raises ConfigError where the site has too few.
    """
    train = parts.load(site).train
    if len(train) < batch:
        text = f"{site} has {len(train)} training images, and a batch of {batch} is attacked"
        raise ConfigError(text, place="attack", hint="attack a larger site: --site NAME")
    generator = Seeds(seed).generator("victims", site)
    order = _patients_first(train.groups, generator)[:count]
    pool = _Pool(parts, site, seed)
    return [_victim(train, int(i), batch, pool, gallery, Seeds(seed).generator("victims", site, n)) for n, i in enumerate(order)]


def held_out_victims(parts: Assembly, site: str, count: int, seed: int, gallery: int = GALLERY) -> list[Victim]:
    """Training images of ``site``, each among held-out images on which nobody trained: of the same site and label first."""
    train = parts.load(site).train
    order = _patients_first(train.groups, Seeds(seed).generator("victims", site))[:count]
    pool = _Pool(parts, site, seed, held_out=True)
    return [_victim(train, int(i), 1, pool, gallery, Seeds(seed).generator("victims", site, n)) for n, i in enumerate(order)]


def public_images(parts: Assembly, site: str, seed: int, count: int = PUBLIC) -> Images:
    """Images the adversary has from elsewhere: validation and test images of other sites; of ``site`` itself where there is no other.

    Raises ConfigError where all images of the task are training images of ``site``.
    """
    return images_of((parts.load(other).part(split), i) for other, split, i in _public(parts, site, seed, count))


def _public(parts: Assembly, site: str, seed: int, count: int = PUBLIC) -> list[tuple[str, Split, int]]:
    """Site, split and place of each."""
    others = [s.slug for s in parts.task.sites() if s.slug != site]

    def all_of(sites: Sequence[str], splits: tuple[Split, ...]) -> list[tuple[str, Split, int]]:
        return [(s, split, i) for s in sites for split in splits for i in range(len(parts.load(s).part(split)))]

    held = all_of(others or [site], ("validation", "test")) or all_of(others, ("train",))
    if not held:
        text = f"every image of this task is a training image of {site}, so an adversary has none from elsewhere"
        raise ConfigError(text, place="attack", hint="a task with held-out images, or several sites")
    chosen = Seeds(seed).generator("public", site).permutation(len(held))[:count]
    return [held[i] for i in sorted(chosen)]


def batch_of(parts: Assembly, site: str, size: int, *names: str | int) -> Images:
    """``size`` training images of a site, drawn by the run's seed and ``names``; all it has where these are fewer."""
    train = parts.load(site).train
    order = parts.seeds.generator("staged", site, *names).permutation(len(train))[:size]
    return images_of((train, int(i)) for i in order)


def images_of(chosen: Iterator[tuple[Examples, int]] | Sequence[tuple[Examples, int]]) -> Images:
    """Stack examples."""
    pairs = [part.example(index) for part, index in chosen]
    return Images(np.stack([i for i, _ in pairs]).astype(np.float32), np.stack([t for _, t in pairs]).astype(np.int64))


def _patients_first(groups: npt.NDArray[np.generic], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """All indices in random order, one of every group before a second of any."""
    order = generator.permutation(len(groups))
    seen: dict[object, int] = {}
    turn = []
    for i in order:
        group = groups[i].item()
        turn.append(seen.get(group, 0))
        seen[group] = turn[-1] + 1
    return order[np.argsort(turn, kind="stable")]


class _Pool:
    """All images from which galleries are made: site, group, label of each."""

    def __init__(self, parts: Assembly, site: str, seed: int, *, held_out: bool = False) -> None:
        public = set(_public(parts, site, seed))
        splits: tuple[Split, ...] = ("validation", "test") if held_out else ("train", "validation", "test")
        self.entries: list[tuple[Examples, int]] = []
        sites, groups, labels = list[str](), list[str](), list[int]()
        for other in (site, *(s.slug for s in parts.task.sites() if s.slug != site)):
            data = parts.load(other)
            for split in splits:
                part = data.part(split)
                free = [i for i in range(len(part)) if (other, split, i) not in public]
                label = part.labels() if free else ()
                self.entries += [(part, i) for i in free]
                sites += [other] * len(free)
                groups += [f"{other}/{part.groups[i]}" for i in free]
                labels += [int(label[i]) for i in free]
        self.site, self.own = site, np.array([s == site for s in sites], bool)
        self.groups, self.labels = np.array(groups), np.array(labels)


def _victim(train: Examples, index: int, batch: int, pool: _Pool, gallery: int, generator: np.random.Generator) -> Victim:
    others = [i for i in generator.permutation(len(train)) if i != index][: batch - 1]
    label, group = int(train.labels()[index]), f"{pool.site}/{train.groups[index]}"
    strangers = np.flatnonzero(pool.groups != group)
    # The closest kind first: 0 same site and label, 1 same label, 2 any.
    kind = np.where(pool.labels[strangers] != label, 2, np.where(pool.own[strangers], 0, 1))
    picked = strangers[np.lexsort((generator.random(len(strangers)), kind))][: gallery - 1]
    place = int(generator.integers(len(picked) + 1))
    chosen = [pool.entries[i] for i in generator.permutation(picked)]
    chosen.insert(place, (train, index))
    alike = int((pool.own[picked] & (pool.labels[picked] == label)).sum())
    return Victim(images_of([(train, index), *((train, int(i)) for i in others)]), images_of(chosen), place, alike, group)

"""``sites: {a: 412, b: 230}``: data that are at the sites of a real federation. Whoever coordinates it has none of them.

What is asked of the data, and everything that needs no data, is the inner task's own; which sites there are, and how many training examples
each has announced, stands in the config.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pppml_core.errors import DataError, check_site
from pppml_core.interfaces.task import SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.wrapped import WrappedTask


class DataElsewhere(WrappedTask):
    """A task whose data are at its sites.

    Args:
        task: what is asked of the data, and at a site: how that site reads its own.
        announced: slug -> number of training examples, in the order of the sites.
        at: the site that builds this; None: the coordinator.
    """

    def __init__(self, task: Task, announced: Mapping[str, int], at: str | None = None) -> None:
        super().__init__(task)
        self.announced, self.at = dict(announced), at

    def sites(self) -> tuple[SiteInfo, ...]:
        """The announced ones."""
        return tuple(SiteInfo(slug, slug) for slug in self.announced)

    def load(self, site: str) -> SiteData:
        """At a site, its own data: those that the inner task has under its name, or all that it has where that is one site.

        Raises DataError for every other site, and at the coordinator for all.
        """
        check_site(site, self.announced, DataError, place="sites")
        if site != self.at:
            raise DataError(f"the data of {site} are at {site}", place="sites", hint="whatever needs them is done there")
        held = [info.slug for info in self.inner.sites()]
        if site not in held and len(held) != 1:
            text = f"there are data of {len(held)} sites here ({', '.join(held)}), and none is named {site}"
            raise DataError(text, place="task", hint=f"give the data of one site, or name {site}'s own so")
        return self.inner.load(site if site in held else held[0])

    def misfits(self) -> list[str]:
        """The inner task's, where the data are."""
        return [] if self.at is None else self.inner.misfits()


def noise_like(spec: TaskSpec, count: int) -> ArrayExamples:
    """Noise of the shape of training examples, to try a network on where there are no data: ``count`` of them, the same at every call."""
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (count, spec.channels, *spec.size)).astype(np.float32)
    shape = (count,) if spec.kind == "classification" else (count, *spec.size)
    targets = generator.integers(len(spec.classes), size=shape)
    return ArrayExamples(images, targets, np.arange(count).astype(np.str_), lambda image: image)

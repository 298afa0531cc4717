"""``task.pool: true``: all sites' training data at one place, the upper bracket of any comparison. Evaluation stays per site."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core.interfaces.task import SiteData, SiteInfo, Task
from pppml_core.learning.data.examples import Concatenated
from pppml_core.learning.wrapped import WrappedTask

POOL = "pool"


class PooledTask(WrappedTask):
    """A task with one site that trains on everybody's training data."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._loaded: dict[str, SiteData] = {}

    def sites(self) -> tuple[SiteInfo, ...]:
        """One."""
        return (SiteInfo(POOL, "all sites pooled"),)

    def part(self, site: str) -> SiteData:
        """One original site's data, loaded once."""
        if site not in self._loaded:
            self._loaded[site] = self.inner.load(site)
        return self._loaded[site]

    def load(self, site: str) -> SiteData:
        """All parts of all sites, in the sites' order."""
        parts = [self.part(s.slug) for s in self.inner.sites()]

        def joined(split: str) -> Concatenated:
            return Concatenated([getattr(p, split) for p in parts])

        return SiteData(joined("train"), joined("validation"), joined("test"))


def evaluated_sites(task: Task) -> tuple[SiteInfo, ...]:
    """The sites whose held-out data are scored: the original ones, also when training is pooled."""
    return task.inner.sites() if isinstance(task, PooledTask) else task.sites()


def held_out(task: Task, site: str, loaded: SiteData) -> Sequence[tuple[str, SiteData]]:
    """Site name and data of each part that a training site evaluates."""
    if isinstance(task, PooledTask):
        return [(s.slug, task.part(s.slug)) for s in task.inner.sites()]
    return [(site, loaded)]

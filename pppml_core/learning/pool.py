"""``task.pool: true``: all sites' training data at one place, the upper bracket of any comparison. Evaluation stays per site."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core.interfaces.task import DataCard, SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.data.examples import Concatenated

POOL = "pool"


class PooledTask(Task):
    """A task with one site that trains on everybody's training data."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.config)
        self.inner = task
        self._loaded: dict[str, SiteData] = {}
        # Loss, score and what is done to a file are the inner task's own.
        self.loss, self.score = task.loss, task.score  # type: ignore[method-assign]
        self.prepare, self.readings = task.prepare, task.readings  # type: ignore[method-assign]

    def spec(self) -> TaskSpec:
        """The inner task's."""
        return self.inner.spec()

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

    def card(self) -> DataCard:
        """The inner task's."""
        return self.inner.card()

    def misfits(self) -> list[str]:
        """The inner task's."""
        return self.inner.misfits()


def evaluated_sites(task: Task) -> tuple[SiteInfo, ...]:
    """The sites whose held-out data are scored: the original ones, also when training is pooled."""
    return task.inner.sites() if isinstance(task, PooledTask) else task.sites()


def held_out(task: Task, site: str, loaded: SiteData) -> Sequence[tuple[str, SiteData]]:
    """Site name and data of each part that a training site evaluates."""
    if isinstance(task, PooledTask):
        return [(s.slug, task.part(s.slug)) for s in task.inner.sites()]
    return [(site, loaded)]

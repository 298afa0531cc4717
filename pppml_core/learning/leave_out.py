"""``task.leave_out: [b]``: a federation without some of its task's sites, which can be tried afterwards as hospitals that come later."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core.errors import DataError, check_site
from pppml_core.interfaces.task import SiteData, SiteInfo, Task
from pppml_core.learning.wrapped import WrappedTask


class TaskWithout(WrappedTask):
    """A task without the sites that are left out. Their data can still be loaded by name, but no round sees them."""

    def __init__(self, task: Task, left_out: Sequence[str]) -> None:
        super().__init__(task)
        self.left_out = tuple(left_out)

    def sites(self) -> tuple[SiteInfo, ...]:
        """Those that take part. Raises DataError on a name that is no site, or where none is left."""
        every = self.inner.sites()
        slugs = [s.slug for s in every]
        for name in self.left_out:
            check_site(name, slugs, DataError, place="task.leave_out", where="to leave out")
        if set(slugs) <= set(self.left_out):
            raise DataError("no site is left", place="task.leave_out", hint="leave fewer out")
        return tuple(s for s in every if s.slug not in self.left_out)

    def load(self, site: str) -> SiteData:
        """Any site's data, also of one that is left out."""
        return self.inner.load(site)

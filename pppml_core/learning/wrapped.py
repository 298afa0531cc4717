"""A task around another one: its data are offered in another way, everything else is the inner task's own."""

from __future__ import annotations

from pppml_core.interfaces.task import DataCard, Task, TaskSpec


class WrappedTask(Task):
    """Hands on what the inner task says and does; a subclass says which ``sites`` there are and how one is loaded."""

    def __init__(self, inner: Task) -> None:
        super().__init__(inner.config)
        self.inner = inner
        # Taken as they are: the defaults of the interface would look at this task's own class and its spec.
        self.loss, self.score = inner.loss, inner.score  # type: ignore[method-assign]
        self.prepare, self.readings = inner.prepare, inner.readings  # type: ignore[method-assign]

    def spec(self) -> TaskSpec:
        """The inner task's."""
        return self.inner.spec()

    def card(self) -> DataCard:
        """The inner task's."""
        return self.inner.card()

    def misfits(self) -> list[str]:
        """The inner task's."""
        return self.inner.misfits()


def innermost(task: Task) -> Task:
    """The task that nothing is wrapped around: with all its sites, also those that a run leaves out."""
    while isinstance(task, WrappedTask):
        task = task.inner
    return task

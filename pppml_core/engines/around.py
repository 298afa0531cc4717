"""A transport around another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from pppml_core.interfaces.engine import Loss, Transport


class Around:
    """Does what the inner transport does; whoever changes something of it says so alone."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.parallel: int = getattr(inner, "parallel", 1)

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """As the inner transport."""
        return self._inner.deliver(frames)

    def remarks(self) -> list[str]:
        """What the inner transport has to say."""
        told: Callable[[], list[str]] = getattr(self._inner, "remarks", list)
        return told()

    def clock(self) -> Mapping[str, float]:
        """The inner transport's."""
        return self._inner.clock()

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()

"""Several sites at once: what every transport of this engine does with frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pppml_core.interfaces.engine import Loss

Ask = Callable[[str, bytes], bytes | Loss]


class Delivery:
    """Asks several sites at once, each in a thread: at most ``parallel``, with one frame a site in memory; replies as they come."""

    def __init__(self, ask: Ask, parallel: int) -> None:
        self._ask, self._parallel = ask, max(1, parallel)
        self._pool = ThreadPoolExecutor(self._parallel, "pppml-ask")

    def __call__(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """As ``Transport.deliver``."""
        source = iter(frames)
        running: set[Future[tuple[str, bytes | Loss]]] = set()
        while True:
            while len(running) < self._parallel and (item := next(source, None)) is not None:
                running.add(self._pool.submit(self._one, *item))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()

    def _one(self, site: str, frame: bytes) -> tuple[str, bytes | Loss]:
        return site, self._ask(site, frame)

    def close(self) -> None:
        """No more of it."""
        self._pool.shutdown(wait=False, cancel_futures=True)

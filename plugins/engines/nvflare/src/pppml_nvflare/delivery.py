"""Several sites at once: what every transport of this engine does with frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pppml_core.interfaces.engine import Loss

Ask = Callable[[str, bytes], bytes | Loss]


def delivered(frames: Iterable[tuple[str, bytes]], ask: Ask, parallel: int) -> Iterator[tuple[str, bytes | Loss]]:
    """Ask each site in a thread of its own, at most ``parallel`` at once and one frame a site in memory; replies as they come."""

    def one(site: str, frame: bytes) -> tuple[str, bytes | Loss]:
        return site, ask(site, frame)

    source = iter(frames)
    running: set[Future[tuple[str, bytes | Loss]]] = set()
    with ThreadPoolExecutor(max(1, parallel), "pppml-ask") as pool:
        while True:
            while len(running) < parallel and (item := next(source, None)) is not None:
                running.add(pool.submit(one, *item))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()

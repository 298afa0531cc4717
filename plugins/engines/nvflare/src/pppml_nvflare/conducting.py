"""Whether a transport stands already: in the server of an NVFlare job that conducts the run itself, and where runs share a simulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pppml_core.interfaces.engine import Transport

#: of runs: a folder of ``<party>``, or the coordinator's alone.
Homes = Path | Mapping[str, Path]

_INSIDE: ContextVar[tuple[Transport, Homes] | None] = ContextVar("pppml_nvflare_inside", default=None)


@contextmanager
def inside(transport: Transport, homes: Homes) -> Iterator[None]:
    """Runs of this engine are conducted over this transport meanwhile."""
    token = _INSIDE.set((transport, homes))
    try:
        yield
    finally:
        _INSIDE.reset(token)


def here() -> tuple[Transport, Homes] | None:
    """That transport, and homes."""
    return _INSIDE.get()

"""Whether this process is the server of an NVFlare job, which conducts the run itself: then the engine has nothing to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pppml_core.interfaces.engine import Transport

#: the transport of the job that this is, and the coordinator's home.
_INSIDE: ContextVar[tuple[Transport, Path] | None] = ContextVar("pppml_nvflare_inside", default=None)


@contextmanager
def inside(transport: Transport, home: Path) -> Iterator[None]:
    """Runs of this engine are conducted over this transport meanwhile."""
    token = _INSIDE.set((transport, home))
    try:
        yield
    finally:
        _INSIDE.reset(token)


def here() -> tuple[Transport, Path] | None:
    """The transport and the coordinator's home, where this is NVFlare's server."""
    return _INSIDE.get()

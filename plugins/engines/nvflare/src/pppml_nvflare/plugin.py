"""The hook: one engine, ``nvflare``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_nvflare.config import NvflareConfig


@hookimpl
def pppml_engines() -> Sequence[Component]:
    """Sites at hospitals."""
    return (
        Component(
            name="nvflare",
            config=NvflareConfig,
            target="pppml_nvflare.engine:NvflareEngine",
            summary="sites at hospitals over NVFlare's Collab: mutual TLS, milliseconds a stage, relays from site to site",
            needs=("nvflare",),
        ),
    )

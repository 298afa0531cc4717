"""The hook: one engine, ``flower``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_flower.config import FlowerConfig


@hookimpl
def pppml_engines() -> Sequence[Component]:
    """Sites behind Flower's SuperNodes."""
    return (
        Component(
            name="flower",
            config=FlowerConfig,
            target="pppml_flower.engine:FlowerEngine",
            summary="sites at hospitals behind Flower SuperNodes; seconds a stage, every hop through the SuperLink",
            cites=("Beutel et al. 2020, Flower: a friendly federated learning research framework, arXiv:2007.14390",),
        ),
    )

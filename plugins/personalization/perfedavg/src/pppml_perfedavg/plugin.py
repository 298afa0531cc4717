"""The hook: ``per-fedavg``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_perfedavg.config import PerFedAvgConfig


@hookimpl
def pppml_personalizations() -> Sequence[Component]:
    """``per-fedavg``."""
    return (
        Component(
            name="per-fedavg",
            config=PerFedAvgConfig,
            target="pppml_perfedavg.perfedavg:PerFedAvg",
            summary="meta-learning: a shared start from which each site adapts in a few gradient steps",
            cites=("Fallah, Mokhtari and Ozdaglar 2020, Per-FedAvg, arXiv:2002.07948",),
        ),
    )

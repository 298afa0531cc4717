"""The hook: one personalization, ``per-fedavg``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_perfedavg.config import PerFedAvgConfig


@hookimpl
def pppml_personalizations() -> Sequence[Component]:
    """Federated meta-learning."""
    return (
        Component(
            name="per-fedavg",
            config=PerFedAvgConfig,
            target="pppml_perfedavg.perfedavg:PerFedAvg",
            summary="weights that one gradient step adapts to each site: federated MAML, first-order, Hessian-free or exact",
            cites=(
                "Fallah, Mokhtari, Ozdaglar 2020, Personalized Federated Learning with Theoretical Guarantees, NeurIPS, arXiv:2002.07948",
                "Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning, arXiv:1703.03400",
            ),
        ),
    )

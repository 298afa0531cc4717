"""The hook: one aggregator, ``he-fedavg``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_he_fedavg.config import HeFedAvgConfig


@hookimpl
def pppml_aggregators() -> Sequence[Component]:
    """Ciphertexts of one key, added by the server."""
    return (
        Component(
            name="he-fedavg",
            config=HeFedAvgConfig,
            target="pppml_he_fedavg.aggregator:HeFedAvg",
            summary="homomorphic sums at the server, one key for all sites: one site and the server read every update",
            cites=(
                "Roth et al. 2022, NVIDIA FLARE: federated learning from simulation to real-world, arXiv:2210.13291",
                "Phong et al. 2018, privacy-preserving deep learning via additively homomorphic encryption, IEEE TIFS 13(5)",
            ),
        ),
    )

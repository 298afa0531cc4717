"""The hook: one aggregator, ``cyclic-he``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_cyclic_he.config import CyclicHEConfig


@hookimpl
def pppml_aggregators() -> Sequence[Component]:
    """Sums along rings of sites."""
    return (
        Component(
            name="cyclic-he",
            config=CyclicHEConfig,
            target="pppml_cyclic_he.aggregator:CyclicHE",
            summary="sums along rings of sites under homomorphic encryption, with self-masks and a computed collusion bound",
            cites=(
                "Zhou et al. 2024, PPPML-HMI, Computers in Biology and Medicine 169:107861 (cyclic secure aggregation)",
                "Fan and Vercauteren 2012, Somewhat practical fully homomorphic encryption, ePrint 2012/144 (BFV)",
                "Alspach 2008, The wonderful Walecki construction, Bulletin of the ICA 52 (disjoint Hamiltonian cycles)",
            ),
        ),
    )

"""The hook: one aggregator, ``secagg-plus``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_secagg_plus.config import SecAggPlusConfig


@hookimpl
def pppml_aggregators() -> Sequence[Component]:
    """Sums under masks."""
    return (
        Component(
            name="secagg-plus",
            config=SecAggPlusConfig,
            target="pppml_secagg_plus.session:SecAggPlus",
            summary="secure sum under pairwise masks: 4 bytes a parameter, survives vanishing sites and a lying server",
            needs=("cryptography",),
            cites=(
                "Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS",
                "Bell et al. 2020, Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS",
            ),
        ),
    )

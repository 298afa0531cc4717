"""A plugin module that offers the INSECURE example sums, for tests. No entry point names it."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core.component import Component, ComponentConfig
from pppml_core.hookspecs import hookimpl


class InsecureSumConfig(ComponentConfig):
    """No settings."""


@hookimpl
def pppml_aggregators() -> Sequence[Component]:
    """``insecure-masked-sum`` and ``insecure-ring``."""
    return [
        Component(
            "insecure-masked-sum",
            InsecureSumConfig,
            "pppml_core.testing.insecure:InsecureMaskedSum",
            "INSECURE example for tests: the shape of a masked sum with dropout recovery",
            cites=("the shape of Bonawitz et al. 2017, doi:10.1145/3133956.3133982, without its cryptography",),
        ),
        Component(
            "insecure-ring",
            InsecureSumConfig,
            "pppml_core.testing.insecure:InsecureRing",
            "INSECURE example for tests: the shape of a ring sum over a relay",
            cites=("the shape of the ring of PPPML-HMI, without its encryption",),
        ),
    ]

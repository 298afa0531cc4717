"""The hook: one attack."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_site_inference.config import SiteInferenceConfig


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``site-inference``."""
    return (
        Component(
            name="site-inference",
            config=SiteInferenceConfig,
            target="pppml_site_inference.attack:SiteInference",
            summary="tells which hospital an image is from, by whose update agrees with it",
            cites=("Hu et al. 2021, Source Inference Attacks in Federated Learning, arXiv:2109.05659",),
        ),
    )

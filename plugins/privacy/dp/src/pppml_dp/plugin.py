"""The hook: three mechanisms."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_dp.config import ClipOnlyConfig, DpSgdConfig, DpUpdateConfig

NEEDS = ("dp_accounting",)


@hookimpl
def pppml_privacy_mechanisms() -> Sequence[Component]:
    """``dp-sgd``, ``dp-update``, ``clip-only``."""
    return (
        Component(
            name="dp-sgd",
            config=DpSgdConfig,
            target="pppml_dp.dp_sgd:DpSgd",
            summary="each image's gradient is clipped, the sum is noised: protects every example or patient",
            needs=NEEDS,
            cites=(
                "Abadi et al. 2016, Deep Learning with Differential Privacy, arXiv:1607.00133",
                "Kairouz, Liu and Steinke 2021, The Distributed Discrete Gaussian Mechanism, arXiv:2102.06387",
            ),
        ),
        Component(
            name="dp-update",
            config=DpUpdateConfig,
            target="pppml_dp.dp_update:DpUpdate",
            summary="each site's whole update is clipped and noised: protects a whole hospital",
            needs=NEEDS,
            cites=("McMahan et al. 2018, Learning Differentially Private Recurrent Language Models, arXiv:1710.06963",),
        ),
        Component(
            name="clip-only",
            config=ClipOnlyConfig,
            target="pppml_dp.clip_only:ClipOnly",
            summary="clipping without noise: no privacy guarantee (epsilon infinite), for comparison",
            cites=("Haj Fares and Saad 2024, DPResNet, arXiv:2412.00687 (whose noise was not added)",),
        ),
    )

"""What this plugin offers."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_chest_ct.config import ChestCTConfig
from pppml_core import Component, hookimpl


@hookimpl
def pppml_tasks() -> Sequence[Component]:
    """One task with two sources of volumes: an embedded phantom and RAD-ChestCT."""
    return [
        Component(
            name="chest-ct",
            config=ChestCTConfig,
            target="pppml_chest_ct.task:ChestCT",
            summary="chest CT volumes, healthy or patient: embedded phantom, or RAD-ChestCT with scanner models as sites",
            needs=("monai", "scipy"),
            cites=(
                "Draelos et al. 2021, RAD-ChestCT, doi:10.1016/j.media.2020.101857",
                "Zhou et al. 2024, PPPML-HMI, doi:10.1016/j.compbiomed.2023.107861",
            ),
        )
    ]

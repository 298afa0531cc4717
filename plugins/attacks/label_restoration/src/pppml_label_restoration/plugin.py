"""The hook: two attacks that read the last layer."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_label_restoration.config import LabelRestorationConfig, LesionAreaConfig


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``label-restoration`` and ``lesion-area``."""
    return (
        Component(
            name="label-restoration",
            config=LabelRestorationConfig,
            target="pppml_label_restoration.attack:LabelRestoration",
            summary="names the diagnoses in a batch, from what the last layer's update says of them",
            cites=(
                "Wainakh et al. 2022, User-Level Label Leakage from Gradients in Federated Learning, PoPETs 2022(2), arXiv:2105.09369",
                "Geng et al. 2021, Towards General Deep Leakage in Federated Learning, arXiv:2110.09074",
            ),
        ),
        Component(
            name="lesion-area",
            config=LesionAreaConfig,
            target="pppml_label_restoration.attack:LesionArea",
            summary="measures the lesion's share of an image, from the update of a segmentation's last layer",
            cites=("Geng et al. 2021, Towards General Deep Leakage in Federated Learning, arXiv:2110.09074",),
        ),
    )

"""The hook: one task, ``blood-cells``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_blood_cells.config import BloodCellsConfig
from pppml_core import Component, hookimpl


@hookimpl
def pppml_tasks() -> Sequence[Component]:
    """Blood cell images by site."""
    return (
        Component(
            name="blood-cells",
            config=BloodCellsConfig,
            target="pppml_blood_cells.task:BloodCells",
            summary="blood cell classification: MedMNIST files (BloodMNIST) and npz files of several sources",
            cites=(
                "Yang et al. 2023, MedMNIST v2, Scientific Data 10:41",
                "Acevedo et al. 2020, peripheral blood cell images, Data in Brief 30:105474",
            ),
        ),
    )

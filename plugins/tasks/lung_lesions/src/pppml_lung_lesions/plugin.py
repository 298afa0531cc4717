"""What this plugin offers."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_lung_lesions.config import LungLesionsConfig


@hookimpl
def pppml_tasks() -> Sequence[Component]:
    """One task with three sources of images: an embedded phantom, an npz file, folders of CT volumes."""
    return [
        Component(
            name="lung-lesions",
            config=LungLesionsConfig,
            target="pppml_lung_lesions.task:LungLesions",
            summary="lesions in chest CT slices: embedded phantom, npz file, or NIfTI and DICOM volumes by site",
            needs=("monai", "nibabel", "pydicom", "scipy"),
            cites=(
                "Zhou et al. 2024, PPPML-HMI, doi:10.1016/j.compbiomed.2023.107861",
                "Fan et al. 2020, Inf-Net, arXiv:2004.14133",
            ),
        )
    ]

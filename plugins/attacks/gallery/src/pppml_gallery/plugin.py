"""The hook: one attack."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_gallery.config import GalleryConfig


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``gallery``."""
    return (
        Component(
            name="gallery",
            config=GalleryConfig,
            target="pppml_gallery.attack:Gallery",
            summary="picks the patient out of candidate images, by the likelihood of what was seen",
            cites=(
                "Balle, Cherubin and Hayes 2022, Reconstructing Training Data with Informed Adversaries, arXiv:2201.04845",
                "Hayes, Mahloujifar and Balle 2023, Bounding Training Data Reconstruction in DP-SGD, arXiv:2302.07225",
                "Schäfer and Strimmer 2005, A Shrinkage Approach to Large-Scale Covariance Matrix Estimation, SAGMB 4(1)",
            ),
        ),
    )

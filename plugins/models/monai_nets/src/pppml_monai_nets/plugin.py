"""What this plugin offers."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_monai_nets.config import DenseNetConfig, MonaiConfig, SmallCNNConfig, UNetConfig


@hookimpl
def pppml_models() -> Sequence[Component]:
    """The four networks of this plugin."""
    return [
        Component(
            name="unet",
            config=UNetConfig,
            target="pppml_monai_nets.unet:UNetModel",
            summary="U-Net with residual units (MONAI), 2-D and 3-D segmentation",
            needs=("monai", "torch"),
            cites=(
                "Ronneberger et al. 2015, U-Net, doi:10.1007/978-3-319-24574-4_28",
                "Kerfoot et al. 2019, residual units, doi:10.1007/978-3-030-12029-0_40",
            ),
        ),
        Component(
            name="densenet",
            config=DenseNetConfig,
            target="pppml_monai_nets.densenet:DenseNetModel",
            summary="DenseNet (MONAI), 2-D and 3-D classification, small or 121 to 264 layers",
            needs=("monai", "torch"),
            cites=("Huang et al. 2017, Densely connected convolutional networks, arXiv:1608.06993",),
        ),
        Component(
            name="small-cnn",
            config=SmallCNNConfig,
            target="pppml_monai_nets.small_cnn:SmallCNNModel",
            summary="small CNN with group normalization, 2-D classification of 8 px and more",
            needs=("torch",),
        ),
        Component(
            name="monai",
            config=MonaiConfig,
            target="pppml_monai_nets.any_monai:MonaiModel",
            summary="any network of monai.networks.nets by its class name",
            needs=("monai", "torch"),
        ),
    ]

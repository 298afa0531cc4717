"""Settings of the networks."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pppml_core import ComponentConfig

#: networks of this plugin that name another one; they do not name each other.
MADE_FROM_ANOTHER = ("linear-head", "group-normed")
#: Every layer has a multiple of 64 channels.
Groups = Annotated[Literal[1, 2, 4, 8, 16, 32, 64], Field(description="groups of every group normalization")]


class DPResNet9Config(ComponentConfig):
    """The DPResNet authors' network. 4,802,120 parameters with 3 channels and 8 classes."""

    groups: Groups = 32


class ScaleResNet9Config(ComponentConfig):
    """ResNet-9 of Klause et al. with ScaleNorm. 2,446,664 parameters with 3 channels and 8 classes."""

    activation: Literal["mish", "relu"] = Field("mish", description="activation after each convolution")
    scale_norm: bool = Field(True, description="group normalization after each residual sum (ScaleNorm)")
    groups: Groups = 32


class _OfAnother(ComponentConfig):
    """Settings of a network that is made from another one."""

    args: dict[str, Any] = Field(default_factory=dict, description="settings of that network")


class LinearHeadConfig(_OfAnother):
    """A linear layer on the features of a frozen network."""

    features: str = Field(description="network whose last linear layer is taken off: an installed model by name, or module:attribute")
    weights: str | None = Field(
        None, description="safetensors file with that network's weights; random: untrained features, drawn from the run's seed"
    )
    sha256: str | None = Field(None, description="hex SHA-256 of the weights file; every site refuses another file")
    standardize: bool = Field(True, description="each image's features get mean 0 and variance 1, so that one clip suits all")

    @model_validator(mode="after")
    def _weights_are_said(self) -> LinearHeadConfig:
        if self.weights is None:
            raise ValueError("give `weights`: a safetensors file for the features, or random for a baseline with untrained features")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 lower-case hexadecimal digits")
        if self.sha256 is not None and self.weights == "random":
            raise ValueError("random weights have no file, so leave sha256 out")
        return self


class GroupNormedConfig(_OfAnother):
    """Another network with group normalization in place of batch normalization, and nothing changed in place."""

    of: str = Field(description="the network: an installed model by name, or module:attribute")
    groups: Annotated[int, Field(ge=1, le=256, description="most groups; a layer takes the largest common divisor with its channels")] = 32

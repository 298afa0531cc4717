"""Settings of the four attacks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core import ComponentConfig

Rule = Literal["auto", "row-sum", "bias", "matched-filter"]

_IMAGES = "distinct images behind one site's update; default: local steps times batch size"
_MOST = "images behind the whole sum above which the attack does not apply"


class MatchingConfig(ComponentConfig):
    """What all four have."""

    images: int | None = Field(None, ge=1, description=_IMAGES)
    most_images: int = Field(64, ge=1, description=_MOST)


class DlgConfig(MatchingConfig):
    """`dlg`: image and soft label jointly, L-BFGS without line search."""

    steps: int = Field(300, ge=1, description="outer steps of L-BFGS, each of at most 20 inner ones")


class IdlgPublishedConfig(MatchingConfig):
    """`idlg-published`: label by the sign rule, then the image, L-BFGS without line search."""

    steps: int = Field(300, ge=1, description="outer steps of L-BFGS, each of at most 20 inner ones")


class IdlgConfig(MatchingConfig):
    """`idlg`: normalized objective, box constraint, strong Wolfe, restarts, defence inside the loss."""

    steps: int = Field(300, ge=1, description="outer steps of L-BFGS in all, over all restarts, each of at most 20 inner ones")
    evaluations: int | None = Field(None, ge=1, description="gradients in all, whatever time is left; default: time and `steps` decide")
    restarts: int = Field(3, ge=1, description="starting points; after `trial` steps each the better half goes on, and so on")
    trial: int = Field(2, ge=1, description="outer steps of each starting point before half of them are dropped")
    orders: int = Field(24, ge=1, description="starting points where several local steps leave the order of the labels open")
    read_error: bool = Field(True, description="read the network's error from the last bias where it is exact: one image, no noise")
    prior: float = Field(1.0, ge=0, description="weight under noise of what public images say of images; 1: as learned, 0: none")
    double: bool = Field(True, description="compute in float64, which saturated networks need; float32 takes about half the time")
    rule: Rule = Field("auto", description="of label inference; auto: matched filter under noise, else the bias, else row sums")
    adaptive: bool = Field(True, description="use what is known of clip, noise and rounding; off: to measure what knowing them is worth")


class InvertingGradientsConfig(MatchingConfig):
    """`inverting-gradients`: cosine distance and total variation, signed Adam."""

    steps: int = Field(4800, ge=8, description="steps of Adam of each restart")
    restarts: int = Field(1, ge=1, description="starting points; the answer of least loss is kept")
    rate: float = Field(0.1, gt=0, description="learning rate, in standard deviations of pixels; a tenth after 3/8, 5/8 and 7/8 of the way")
    smooth: float = Field(0.1, ge=0, description="weight of total variation (mean absolute difference of neighbours)")
    rule: Rule = Field("auto", description="of label inference; auto: matched filter under noise, else the bias, else row sums")


class SigmoidLenetConfig(ComponentConfig):
    """`sigmoid-lenet`: three convolutions with sigmoids and a linear head; 2-D classification."""

    channels: int = Field(12, ge=1, le=256, description="of each convolution")
    width: float = Field(0.5, gt=0, le=10, description="weights and biases begin uniform between minus this and this")

"""Settings of the built-in components."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pppml_core.component import ComponentConfig

Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class PlainConfig(ComponentConfig):
    """`plain`: the server reads every site's update and adds them."""


class ServerOptimizer(ComponentConfig):
    """How the server applies the mean update (Reddi et al. 2021, FedOpt)."""

    use: Literal["sgd", "adam"] = Field("sgd", description="sgd with momentum 0 and lr 1 is plain FedAvg")
    lr: float = Field(1.0, gt=0, allow_inf_nan=False, description="server learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    betas: tuple[Decay, Decay] = Field((0.9, 0.99), description="moment decay rates of adam")
    epsilon: float = Field(1e-3, gt=0, allow_inf_nan=False, description="adam's degree of adaptivity (tau in the paper)")


class FedAvgConfig(ComponentConfig):
    """`fedavg`: the mean of local updates, weighted by training examples."""

    server_optimizer: ServerOptimizer = Field(default_factory=ServerOptimizer, description="how the server applies the mean")
    weight_cap: int | None = Field(None, ge=1, description="a site weighs at most this many examples; default: no cap")


class LocalOnlyConfig(ComponentConfig):
    """`local-only`: every site trains alone and shares nothing; the lower bracket of any comparison."""


class NoPrivacyConfig(ComponentConfig):
    """`none`: no clipping, no noise, no claim."""


class TinyTaskConfig(ComponentConfig):
    """`tiny`: a few small synthetic images per site, for tests and first steps."""

    sites: int = Field(3, ge=1, le=10_000, description="number of sites")
    examples: int = Field(24, ge=6, description="training examples of the first site; each further site has one more")
    size: int = Field(8, ge=4, le=64, description="pixels a side")
    classes: int = Field(3, ge=2, le=10, description="classes")
    kind: Literal["classification", "segmentation"] = Field("classification", description="what is predicted")
    data_seed: int = Field(0, ge=0, description="seed of the images, apart from the run's")


class TinyNetConfig(ComponentConfig):
    """`tiny-net`: two convolutions and a head, for tests and first steps."""

    width: int = Field(8, ge=1, le=2048, description="channels of the first convolution; the second has twice as many")
    norm: Literal["group", "batch"] = Field("group", description="normalization after the first convolution")


class ReadOutConfig(ComponentConfig):
    """`read-out`: a site's own update, from what the adversary decodes. It has no settings."""


class DistinguishConfig(ComponentConfig):
    """`distinguish`: whether the messages of a secure sum tell who gave what."""

    sums: int = Field(200, ge=200, le=100_000, description="sums that are held; half are learned from, half are tested")
    length: int = Field(64, ge=1, le=1_000_000, description="numbers of each site in a sum")
    seed: int = Field(0, ge=0, description="of the coins that choose the worlds; keys and masks are the operating system's")

"""Settings of the mechanisms."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pppml_core.component import ComponentConfig

Noise = Literal["discrete-gaussian", "skellam"]
#: The update's clip, the noise and delta in the DPResNet authors' code: sensitivity 1 under a clip of 7, epsilon 6 a round.
PAPER = {"clip": 7.0, "claimed_epsilon": 6.0, "delta": 1.9e-4, "claimed_sensitivity": 1.0}


class _Noised(ComponentConfig):
    """What every mechanism with noise has."""

    epsilon: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="budget of the whole run; without a noise multiplier it sets the noise"
    )
    noise_multiplier: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="standard deviation of the noise in sensitivities; 0: no noise and no guarantee"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="probability with which the bound may fail; below 1 / number of examples")
    noise: Noise = Field("discrete-gaussian", description="distribution of the integers that are added")
    colluders: int = Field(1, ge=0, description="sites that may tell an adversary their share of the noise (placement distributed)")

    @model_validator(mode="after")
    def _noise_can_hold_epsilon(self) -> Self:
        if self.noise_multiplier == 0 and self.epsilon is not None:
            raise ValueError(f"noise_multiplier: 0 guarantees nothing, so epsilon {self.epsilon:g} would never hold; leave one of them out")
        return self


class DpSgdConfig(_Noised):
    """`dp-sgd`: DP-SGD. Give `epsilon`, and the noise follows; or `noise_multiplier`, and epsilon follows; or both: stop at epsilon."""

    clip: float = Field(1.0, gt=0, allow_inf_nan=False, description="L2 norm to which each example's gradient is clipped")
    clipping: Literal["flat", "per-layer", "automatic"] = Field(
        "flat",
        description="flat: one norm over all weights; per-layer: clip / sqrt(layers) each; automatic: every gradient has norm near clip",
    )
    unit: Literal["example", "patient"] = Field("example", description="whose data is protected; patient: all images of one group together")
    images_per_patient: int = Field(4, ge=1, description="most images of one patient in a batch (unit patient)")
    placement: Literal["local", "distributed", "server"] = Field(
        "local",
        description="local: each site noises its own gradients; distributed: shares of noise in a secure sum; server: a trusted server",
    )
    sample_rate: float | None = Field(
        None, gt=0, le=1, description="probability of each example to be in a batch; default: training.batch_size over the mean site size"
    )
    per_example: Literal["auto", "book-keeping", "functional", "loop"] = Field("auto", description="how per-example gradients are made")
    physical_batch: int | None = Field(
        None, ge=1, description="examples computed at once; smaller needs less memory; default: the whole batch"
    )

    @model_validator(mode="after")
    def _noise_is_given(self) -> DpSgdConfig:
        if self.epsilon is None and self.noise_multiplier is None:
            raise ValueError("give epsilon (the noise is solved for it) or noise_multiplier (epsilon is computed), or both")
        return self


class DpUpdateConfig(_Noised):
    """`dp-update`: a site's update of a round is clipped and noised as a whole."""

    preset: Literal["paper"] | None = Field(
        None,
        description="paper: the DPResNet authors' setting (clip 7, noise for epsilon 6 a round at sensitivity 1), with its true epsilon",
    )
    clip: float | None = Field(None, gt=0, allow_inf_nan=False, description="L2 norm to which a site's update is clipped; default 1")
    placement: Literal["local", "distributed", "server"] = Field(
        "local",
        description="local: each site noises its own update; distributed: shares of noise add up in a secure sum; server: a trusted server",
    )

    @model_validator(mode="after")
    def _noise_is_given_once(self) -> DpUpdateConfig:
        if self.preset is None and self.epsilon is None and self.noise_multiplier is None:
            raise ValueError("give epsilon (the noise is solved for it), noise_multiplier (epsilon is computed), both, or preset: paper")
        own = ("epsilon", "noise_multiplier", "clip", "delta", "placement", "noise")
        # (A saved config spells out the defaults.)
        if self.preset is not None and (own := [n for n in own if getattr(self, n) != type(self).model_fields[n].default]):
            raise ValueError(f"preset: paper sets {', '.join(own)} itself; leave it out")
        return self


class ClipOnlyConfig(ComponentConfig):
    """`clip-only`: clipping without noise, the row that shows what noise costs. It guarantees nothing: epsilon is infinite."""

    clip: float = Field(1.0, gt=0, allow_inf_nan=False, description="L2 norm of an example's gradient, or of a site's update")
    unit: Literal["example", "site"] = Field(
        "example", description="example: as dp-sgd without its noise; site: as dp-update without its noise"
    )
    clipping: Literal["flat", "per-layer", "automatic"] = Field("flat", description="as in dp-sgd (unit example)")
    placement: Literal["local", "distributed"] = Field(
        "local", description="as in dp-sgd: several steps a round, or one gradient a secure sum (unit example)"
    )
    sample_rate: float | None = Field(None, gt=0, le=1, description="as in dp-sgd (unit example)")
    physical_batch: int | None = Field(None, ge=1, description="as in dp-sgd (unit example)")

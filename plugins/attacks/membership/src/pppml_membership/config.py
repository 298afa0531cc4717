"""Settings of `membership`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pppml_core import ComponentConfig


class MembershipConfig(ComponentConfig):
    """`membership`: scores images by how much the model behaves as if it had been trained on them."""

    method: Literal["rmia", "lira", "gradient", "loss"] = Field(
        "rmia", description="likelihood ratios with few or with many reference models, agreement with the update, or the plain loss"
    )
    references: int = Field(2, ge=1, le=256, description="reference models of rmia and lira, each trained on half of the public images")
    steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="training steps of a reference model; default: as many as the site made up to the round",
    )
    a: float = Field(0.3, ge=0, le=1, description="of rmia: an image of probability p as a stranger has a p + 1 - a as a member")
    gamma: float = Field(1.0, gt=0, allow_inf_nan=False, description="of rmia: by what factor an image must beat a public one")
    public: int = Field(100, ge=8, le=10_000, description="of gradient: public images against which agreement is held, at most")

    @model_validator(mode="after")
    def _a_variance(self) -> MembershipConfig:
        if self.method == "lira" and self.references < 2:
            raise ValueError("lira needs at least 2 reference models for a variance")
        return self

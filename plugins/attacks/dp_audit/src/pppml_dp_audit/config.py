"""Settings of `dp-audit`."""

from __future__ import annotations

from pydantic import Field, model_validator

from pppml_core import ComponentConfig


class DpAuditConfig(ComponentConfig):
    """`dp-audit`: replays a run's privacy mechanism on artificial examples and bounds its epsilon from below."""

    canaries: int = Field(20_000, ge=20, le=1_000_000, description="artificial examples; at most as many as the model has shared weights")
    guesses: int | None = Field(
        None,
        ge=2,
        description="canaries that are guessed; default: 1 % of them, at least 20, more where a claim needs more for missing noise to show",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the bound that is reported")
    confirmations: int = Field(8, ge=1, le=1000, description="further replays where the first is above the claim, which decide")
    audits: int = Field(1, ge=1, description="audits that are judged together: each is tested that many times more strictly")

    @model_validator(mode="after")
    def _guesses_of_canaries(self) -> DpAuditConfig:
        if self.guesses is not None and self.guesses > self.canaries:
            raise ValueError(f"{self.guesses} guesses are more than {self.canaries} canaries")
        return self

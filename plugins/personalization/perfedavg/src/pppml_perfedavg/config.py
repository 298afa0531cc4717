"""Settings of Per-FedAvg."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pppml_core.builtin.configs import FedAvgConfig

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PerFedAvgConfig(FedAvgConfig):
    """`per-fedavg`: a shared start from which every site adapts well in a few gradient steps."""

    inner_lr: Rate = Field(0.01, description="alpha: rate of the step a site adapts with; 0 is FedAvg")
    outer_lr: Rate | None = Field(None, description="beta: rate of the local steps; default: training.optimizer.lr")
    order: Literal["first", "hessian-free", "exact"] = Field(
        "first", description="first: without second derivatives; hessian-free: by differences of gradients; exact"
    )
    hessian_step: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field("auto", description="delta of hessian-free")
    batch_norm: Literal["shared", "local", "frozen"] = Field(
        "shared", description="running statistics: shared as weights are, local to the site, or frozen at their initial values"
    )
    adapt_steps: int = Field(1, ge=0, le=100_000, description="gradient steps a site adapts with")
    adapt_lr: Rate | None = Field(None, description="their rate; default: inner_lr")

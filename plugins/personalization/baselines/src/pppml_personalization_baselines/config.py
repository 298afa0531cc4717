"""Settings of the baselines."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pppml_core.builtin.configs import FedAvgConfig

Passes = Annotated[int | None, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Pattern = Annotated[str, Field(min_length=1)]

NEW_EPOCHS = "epochs of a site that never took part, when it makes its own model; default: as `training`"
NEW_STEPS = "optimizer steps of a site that never took part, instead of adapt_epochs"
HEAD = "what stays at the site: auto (the last layer and what follows it) or shell-style patterns of parameter names, e.g. `head.*`"


class LengthsConfig(FedAvgConfig):
    """FedAvg's settings, and trainings whose length is given in epochs or in optimizer steps."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        """Of each pair `<name>_epochs`, `<name>_steps` at most one is given."""
        for steps in type(self).model_fields:
            epochs = f"{steps.removesuffix('steps')}epochs"
            if steps.endswith("steps") and getattr(self, steps) is not None and getattr(self, epochs) is not None:
                raise ValueError(f"give {epochs} or {steps}, not both")
        return self


class FineTuneConfig(LengthsConfig):
    """`fedavg-finetune`: FedAvg; each site trains the shared model on for a little before it uses it."""

    epochs: Passes = Field(None, description="epochs of fine-tuning; default 1")
    steps: Passes = Field(None, description="optimizer steps of fine-tuning, instead of epochs")
    lr: Rate | None = Field(None, description="learning rate of fine-tuning; default: training.optimizer.lr")


class FedProxConfig(FedAvgConfig):
    """`fedprox`: FedAvg whose local training is pulled towards the shared model."""

    mu: Rate = Field(0.01, description="strength of the proximal term; 0 is FedAvg; the paper tries 0.001, 0.01, 0.1 and 1")


class FedBNConfig(LengthsConfig):
    """`fedbn`: FedAvg on everything but the normalization layers, which stay at the site."""

    layers: Literal["batch", "all"] = Field(
        "batch", description="batch: BatchNorm, as published; all: also group, layer and instance normalization, a departure"
    )
    adapt_epochs: Passes = Field(None, description=NEW_EPOCHS)
    adapt_steps: Passes = Field(None, description=NEW_STEPS)


class DittoConfig(LengthsConfig):
    """`ditto`: FedAvg, and a personal model beside it that is pulled towards the shared one."""

    strength: Rate = Field(0.1, description="lambda of the paper: 0 is training alone, a large one keeps to the shared model")
    personal_epochs: Passes = Field(None, description="epochs of the personal model each round; default: as `training`")
    personal_steps: Passes = Field(None, description="optimizer steps of the personal model each round, instead of personal_epochs")
    adapt_epochs: Passes = Field(None, description=NEW_EPOCHS)
    adapt_steps: Passes = Field(None, description=NEW_STEPS)


class FedPerConfig(LengthsConfig):
    """`fedper`: a shared body and a personal head, trained together."""

    head: Pattern | Annotated[tuple[Pattern, ...], Field(min_length=1)] = Field("auto", description=HEAD)
    adapt_epochs: Passes = Field(None, description=NEW_EPOCHS)
    adapt_steps: Passes = Field(None, description=NEW_STEPS)


class FedRepConfig(FedPerConfig):
    """`fedrep`: a shared body and a personal head; each round first the head is trained, then the body."""

    head_epochs: Passes = Field(None, description="epochs of the head each round; default: as `training`")
    head_steps: Passes = Field(None, description="optimizer steps of the head each round (tau of the paper), instead of head_epochs")


class APFLConfig(LengthsConfig):
    """`apfl`: FedAvg, and a personal model beside it that is trained as part of a mixture with the shared one."""

    alpha: float = Field(0.5, ge=0, le=1, description="share of the personal model in the mixture at the beginning; 0: shared, 1: alone")
    alpha_lr: Rate = Field(0.01, description="rate of alpha's own gradient step; 0 keeps alpha as it is")
    adapt_epochs: Passes = Field(None, description=NEW_EPOCHS)
    adapt_steps: Passes = Field(None, description=NEW_STEPS)

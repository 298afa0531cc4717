"""``RunConfig``: everything a run is told, with defaults. Only ``task`` is required.

The component sections (``task``, ``model``, ...) are bound at start-up to the union of what is installed
(:func:`pppml_core.config.bind`); here they are plain choices.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pppml_core.component import Choice, ComponentConfig

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]


def _some(weights: list[float]) -> list[float]:
    if not any(weights):
        raise ValueError("at least one class must weigh more than 0")
    return weights


class Section(BaseModel):
    """A static section: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Stop(Section):
    """Early stopping on validation data."""

    metric: str | None = Field(None, description="validation metric to watch; default: the task's primary metric")
    patience: int = Field(5, ge=1, description="rounds without improvement before the run stops")


class RunSection(Section):
    """How long, how seeded, what happens when a round fails, what is measured."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name in reports and of the default folder: letters, digits and . _ -"
    )
    rounds: int = Field(10, ge=1, le=100_000, description="communication rounds")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="root of all learning randomness; never of keys, masks or noise")
    cohort: int | None = Field(None, ge=1, description="sites drawn each round; default: all")
    min_cohort: int = Field(1, ge=1, description="fewest sites a round may be held with")
    on_abort: Literal["retry", "skip", "stop"] = Field("retry", description="what follows a round that ended without a sum")
    retries: int = Field(2, ge=0, le=100, description="further attempts of a round with `on_abort: retry`, then the run stops")
    metrics: Literal["per-site", "sum", "none"] = Field(
        "per-site", description="evaluation results that leave a site: one by one, only summed over sites, or none"
    )
    evaluate_every: int = Field(1, ge=1, description="rounds between evaluations; the last round is always evaluated")
    select: Literal["last", "best-validation"] = Field("last", description="which round's weights are the result")
    stop: Stop | None = Field(None, description="early stopping; off by default")
    transcript: Literal["sizes", "payloads", "secrets"] = Field(
        "sizes",
        description="what transcripts/ records of each message: its size, or all of it; secrets: also every party's keys, for experiments",
    )


#: Settings that every attack takes beside its own: where and when a run makes it, and how much is spent.
OF_ANY_ATTACK: dict[str, Any] = {
    "vantage": (str, Field("server", description="who looks: server, site:A, neighbours:A, link:A-B, public, joined by +")),
    "rounds": (
        list[Annotated[int, Field(ge=1)]],
        Field(default_factory=list, description="rounds whose model is attacked, during the run; none: at its end, its result"),
    ),
    "victims": (
        int | None,
        Field(None, ge=1, description="images that are attacked; default: 100 of an attack that takes milliseconds, else 3"),
    ),
    "seconds": (Positive | None, Field(None, description="wall-clock time for one victim, of attacks that search; default: 10")),
}


class EncodingSection(Section):
    """How real updates become what the aggregator sums."""

    use: Literal["fixed", "float"] = Field("fixed", description="fixed: exact integer sums; float: no quantization, `plain` only")
    bits: int = Field(16, ge=2, le=24, description="bits of one coordinate of one contribution")
    range: Literal["auto"] | Positive | dict[str, Positive] = Field(
        "auto",
        description="largest absolute update of a coordinate: auto (64 x the RMS of the last public aggregate, per tensor), one number, or "
        "a map from tensor name patterns (shell style) to numbers",
    )
    start: float = Field(1.0, gt=0, allow_inf_nan=False, description="range of parameters in round 1 with `range: auto`")
    max_weight: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="public upper bound of a site's weight; auto: the largest site's training examples (site sizes are then public)"
    )


class OptimizerSection(Section):
    """The local optimizer, reset each round unless `training.keep_optimizer`."""

    use: Literal["sgd", "adam", "adamw"] = Field("sgd", description="optimizer")
    lr: float = Field(0.01, gt=0, allow_inf_nan=False, description="learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight decay (decoupled for adamw)")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="moment decay rates of adam and adamw")


class TrainingSection(Section):
    """Local training at each site."""

    epochs: int | None = Field(None, ge=0, description="passes over the site's training data each round; default 1")
    steps: int | None = Field(None, ge=0, description="optimizer steps each round, instead of epochs")
    batch_size: int = Field(16, ge=1, description="examples per step; a smaller site uses all it has")
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    schedule: Literal["constant", "cosine", "step"] = Field("constant", description="learning rate over rounds")
    warmup_rounds: int = Field(0, ge=0, description="rounds of linear warm-up before the schedule")
    class_weights: Literal["none", "balanced"] | Annotated[list[Weight], AfterValidator(_some)] = Field(
        "none", description="loss weights per class: none, balanced (inverse frequency at the site), or a list"
    )
    augment: bool = Field(False, description="the task's training-time augmentation")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU when there is one")
    precision: Literal["float32", "bf16", "float64"] = Field("float32", description="bf16: autocast; float64: whole computation")
    loader_workers: int = Field(0, ge=0, le=64, description="threads that prepare examples ahead; never changes results")
    cache: bool = Field(True, description="keep transformed examples in memory")
    threads: int = Field(1, ge=1, le=256, description="torch threads per site; part of what bit-identical results depend on")
    init: str | None = Field(None, description="safetensors file with initial weights")
    keep_optimizer: bool = Field(False, description="keep the local optimizer's state at the site between rounds")

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> TrainingSection:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


def _encoding_by_name(value: Any) -> Any:
    """``encoding: float`` is short for ``encoding: {use: float}``."""
    return {"use": value} if isinstance(value, str) else value


_EncodingName = Literal["fixed", "float"]


class RunConfig(Section):
    """A run. Component sections take a name (``unet``) or a map with ``use`` and the component's settings."""

    extends: str | list[str] | None = Field(None, description="recipes or files this config builds on: `distribution/recipe` or a path")
    run: RunSection = Field(default_factory=RunSection)
    task: Annotated[ComponentConfig, Choice("task")]
    pool: bool = Field(False, description="set by `task.pool: true`: all sites' data at one place, centralized training")
    leave_out: list[str] = Field(
        default_factory=list, description="set by `task.leave_out`: sites (slugs) that take no part, so that a model can be tried on them"
    )
    sites: dict[Slug, Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="the sites of a real federation, in their order, and how many training examples each has announced, "
        "`{clinic_a: 412, clinic_b: 230}`; the data are at the sites, and nothing of them is looked at here",
    )
    model: Annotated[ComponentConfig | None, Choice("model")] = None
    training: TrainingSection = Field(default_factory=TrainingSection)
    encoding: Annotated[EncodingSection, BeforeValidator(_encoding_by_name, json_schema_input_type=EncodingSection | _EncodingName)] = (
        Field(default_factory=EncodingSection)
    )
    personalization: Annotated[ComponentConfig, Choice("personalization", default="fedavg")]
    privacy: Annotated[ComponentConfig, Choice("privacy", default="none")]
    aggregator: Annotated[ComponentConfig, Choice("aggregator", default="plain")]
    attacks: list[Annotated[ComponentConfig, Choice("attack")]] = Field(default_factory=list)
    reporters: Annotated[list[Annotated[ComponentConfig, Choice("reporter")]], Field(default=["console", "jsonl"], validate_default=True)]
    engine: Annotated[ComponentConfig, Choice("engine", default="local")]

    @model_validator(mode="after")
    def _sites_are_all_there_is(self) -> RunConfig:
        if self.sites is not None and (self.pool or self.leave_out):
            raise ValueError("the data are at the `sites`: leave out `task.pool`, and a site of `task.leave_out` by not naming it")
        if self.sites is not None and ("server" in self.sites or not self.sites):
            raise ValueError("`sites` names the sites, at least one; `server` is the coordinator")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every default written out: what ``config.resolved.yaml`` holds."""
        return self.model_dump(mode="json")

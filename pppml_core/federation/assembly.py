"""The parts of a run, built from its resolved configuration: the same at the server and at every site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from pppml_core.config import RunConfig, resolve, to_plain
from pppml_core.errors import ConfigError
from pppml_core.federation.pipeline import Pipeline, contribution_layout
from pppml_core.interfaces.aggregation import Aggregator, Guarantees
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.personalization import Personalization
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacySetting
from pppml_core.interfaces.task import SiteData, Task, TaskSpec
from pppml_core.learning.arrays import parameters_and_buffers
from pppml_core.learning.elsewhere import DataElsewhere
from pppml_core.learning.evaluation import Remembered
from pppml_core.learning.leave_out import TaskWithout
from pppml_core.learning.pool import PooledTask
from pppml_core.learning.training import DTYPES, device_of, fits_cache, learning_rate_factor, steps_per_round
from pppml_core.randomness import Seeds, seeded
from pppml_core.registry import Registry
from pppml_core.values import Layout, TensorSpec, ValueSpec


@dataclass
class Assembly:
    """Built components and what follows from them. ``config`` is complete: model and training defaults are the task's."""

    config: RunConfig
    registry: Registry
    task: Task
    factory: ModelFactory
    personalization: Personalization
    mechanism: PrivacyMechanism
    aggregator: Aggregator
    #: the whole initial state, filled in when ``model`` is first made.
    initial_state: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def build(cls, config: RunConfig, registry: Registry, objects: Mapping[str, Any] | None = None, *, at: str | None = None) -> Assembly:
        """Build every component of a bound config.

        Args:
            config: bound, not necessarily complete.
            registry: where its components are.
            objects: live Python objects by section.
            at: the site whose process this is, where each site has only its own data.
        """
        objects = objects or {}
        task = registry.build("task", config.task, objects)
        if config.sites is not None:
            task = DataElsewhere(task, config.sites, at)
        if config.leave_out:
            task = TaskWithout(task, config.leave_out)
        if config.pool:
            task = PooledTask(task)
        config = with_task_defaults(config, task.spec(), registry)
        if config.model is None:
            raise ConfigError("no model is configured and the task names none", place="model", hint="add a line such as `model: unet`")
        return cls(
            config,
            registry,
            task,
            registry.build("model", config.model, objects),
            registry.build("personalization", config.personalization, objects),
            registry.build("privacy", config.privacy, objects),
            registry.build("aggregator", config.aggregator, objects),
        )

    @property
    def seeds(self) -> Seeds:
        """The run's learning seeds."""
        return Seeds(self.config.run.seed)

    @cached_property
    def spec(self) -> TaskSpec:
        """The task's."""
        return self.task.spec()

    @cached_property
    def model(self) -> torch.nn.Module:
        """The one network of this process, on the training device, with its initial weights (seeded, or from ``training.init``)."""
        training = self.config.training
        with seeded(self.seeds.integer("initial-weights")):
            model = self.factory.build(self.spec)
        if training.init is not None:
            load_initial(model, Path(training.init))
        model.to(device_of(training), DTYPES[training.precision])
        self.initial_state = {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}
        return model

    @cached_property
    def initial_weights(self) -> dict[str, torch.Tensor]:
        """The initial values of what is shared: the same at every party."""
        _ = self.model
        return {t.name: self.initial_state[t.name] for t in self.shared}

    @cached_property
    def initial_personal(self) -> dict[str, torch.Tensor]:
        """The initial values of what is not shared."""
        _ = self.model
        names = {t.name for t in self.shared}
        return {n: t for n, t in self.initial_state.items() if n not in names}

    @cached_property
    def shared(self) -> tuple[TensorSpec, ...]:
        """What of the model is shared. Floating buffers are, except under differential privacy, which has no mechanism for them."""
        private = self.config.privacy.use != "none"  # type: ignore[attr-defined]
        return parameters_and_buffers(self.model, self.personalization.shared, share_buffers=not private)

    def layout(self, *, metrics: bool) -> Layout:
        """Of a contribution."""
        return contribution_layout(self.shared, metrics=metrics)

    def pipeline(self, round: int, ranges: tuple[float, ...], max_weight: int, privacy: PrivacyPlan) -> Pipeline:
        """The round's encoding from its public terms and the run's privacy plan, whose grid goes before the announced ranges."""
        encoding, bits = self.config.encoding, self.config.encoding.bits
        if (grid := privacy.encoding(round)) is not None and encoding.use == "fixed":
            ranges, bits = (grid.range,) * len(self.shared), grid.bits
        dtype = "float64" if self.config.training.precision == "float64" else "float32"
        layout = self.layout(metrics=privacy.admits_metrics)
        return Pipeline(layout, ranges, bits, max_weight, privacy, encoding.use == "float", dtype)

    def privacy_setting(self, sizes: Mapping[str, int]) -> PrivacySetting:
        """What the privacy mechanism is planned for: the same public numbers at every party. ``sizes``: training examples of each site."""
        run, training = self.config.run, self.config.training
        cohort = tuple(sizes)[: run.cohort or len(sizes)]
        rate = self.mechanism.sample_rate(sizes, training.batch_size)
        each = self.personalization.batches_per_step
        guarantees = None
        # What is promised does not depend on the value that is summed.
        if self.personalization.shares and not self.aggregator.misfits(one := ValueSpec(1, "integer", 1), cohort):
            guarantees = self.aggregator.plan(one, cohort).guarantees
        return PrivacySetting(
            rounds=run.rounds,
            cohort=len(cohort),
            examples=sizes,
            batch_size=training.batch_size,
            sample_rate=rate,
            local_steps={site: steps_per_round(training, n, each, rate) for site, n in sizes.items()},
            gradient_calls=self.personalization.gradient_calls,
            learning_rates=tuple(training.optimizer.lr * learning_rate_factor(training, r, run.rounds) for r in range(1, run.rounds + 1)),
            coordinates=max(sum(t.size for t in self.shared), sum(p.numel() for p in self.model.parameters() if p.requires_grad)),
            min_survivors=fewest_survivors(guarantees, len(cohort)),
            sees_sum=() if guarantees is None else guarantees.sees_sum,
            sees_update=() if guarantees is None else guarantees.sees_update,
            coalition=0 if guarantees is None else guarantees.coalition_curious,
        )

    def load(self, site: str) -> SiteData:
        """A site's data, loaded when first needed and then kept."""
        if site not in self._data:
            data, sites = self.task.load(site), len(self.task.sites())
            if self.config.training.cache and not self.config.pool:
                kept = [Remembered(part) if fits_cache(part, sites) else part for part in (data.validation, data.test)]
                data = SiteData(data.train, *kept)
            self._data[site] = data
        return self._data[site]

    @cached_property
    def _data(self) -> dict[str, SiteData]:
        return {}


def fewest_survivors(guarantees: Guarantees | None, cohort: int) -> int:
    """Fewest sites over which a sum is opened, as its parties themselves enforce it; all of them where nothing is summed."""
    return cohort if guarantees is None else max(1, cohort - guarantees.dropouts)


def with_task_defaults(config: RunConfig, spec: TaskSpec, registry: Registry) -> RunConfig:
    """Fill in what the user left to the task: the model's name and training settings that were not set."""
    plain = to_plain(config)
    plain["training"] = _merged(config.training, plain["training"], spec.training)
    if config.model is None:
        plain["model"] = spec.model
    return resolve(plain, registry=registry)


def _merged(section: BaseModel, plain: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``plain`` with the task's defaults for every field the user did not set; epochs and steps are one choice."""
    out = dict(plain)
    chosen = section.model_fields_set | ({"epochs", "steps"} if {"epochs", "steps"} & section.model_fields_set else set())
    for name, default in defaults.items():
        if isinstance(default, Mapping):
            out[name] = _merged(getattr(section, name), plain[name], default)
        elif name not in chosen:
            out[name] = default
    return out


def load_initial(model: torch.nn.Module, path: Path) -> None:
    """Initial weights from a safetensors file. Tensors whose name and shape fit are taken; none fitting is an error."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise ConfigError(f"there is no file {path}", place="training.init", hint="give a safetensors file")
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", place="training.init", hint="give a safetensors file") from error
    state = model.state_dict()
    missing = [n for n in state if n not in given]
    wrong = [f"{n} {tuple(given[n].shape)} for {tuple(state[n].shape)}" for n in state if n in given and given[n].shape != state[n].shape]
    if missing or wrong:
        parts = ([f"missing {', '.join(missing[:3])}"] if missing else []) + ([f"other shape: {', '.join(wrong[:3])}"] if wrong else [])
        raise ConfigError(f"{path} does not fit the model: {'; '.join(parts)}", place="training.init", hint="use weights of the same model")
    model.load_state_dict({n: given[n] for n in state})

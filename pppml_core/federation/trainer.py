"""What a site computes: its contribution of a round and its scores. The torch half of a site."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.evaluation import Scores, weight_kinds
from pppml_core.federation.files import write_atomic
from pppml_core.federation.ledger import Ledger
from pppml_core.federation.pipeline import Pipeline
from pppml_core.federation.store import SiteStore
from pppml_core.interfaces.personalization import GradientRule, Update
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.interfaces.task import Examples, Predictions, Split, Task, TaskSpec
from pppml_core.learning.arrays import load_state, personal_state, to_numpy, to_torch
from pppml_core.learning.evaluation import predict_examples
from pppml_core.learning.gradients import PlainGradients, plain_gradients
from pppml_core.learning.losses import default_loss
from pppml_core.learning.metrics import score_groups
from pppml_core.learning.pool import held_out
from pppml_core.learning.training import LocalTraining, Sampler, TensorCache, class_weights, device_of, fits_cache
from pppml_core.randomness import seeded

#: JSON in a site's own folder: ``{"metric": name, "sites": {site: {split: {weights: {"groups", "values", "counts"}}}}}``. It never leaves.
GROUP_SCORES = "group-scores.json"


class Trainer:
    """Trains and evaluates for one site, with the process's one network."""

    def __init__(self, assembly: Assembly, site: str, store: SiteStore, privacy: PrivacyPlan, clock: dict[str, float]) -> None:
        self._parts, self._site, self._store, self._privacy, self._clock = assembly, site, store, privacy, clock
        self._ledger = Ledger(store.folder / "ledger.jsonl")
        self._cache: TensorCache | None = None
        self._plain: PlainGradients | None = None

    def contribution(
        self, round: int, key: bytes, weights: Mapping[str, npt.NDArray[Any]], pipeline: Pipeline | None, keep: Iterable[int]
    ) -> npt.NDArray[Any]:
        """This site's value of a round: trained once, cached under ``key``; an empty array where nothing is shared."""
        held = self._store.contribution("update", key)
        # Without the state that goes with it (a resumed run went back behind it) the cached one is not used.
        if held is None or round not in self._store.rounds():
            held = self._make(round, weights, pipeline, keep)
            self._store.save_contribution("update", key, held if pipeline is None else held.astype(pipeline.spec.dtype(), copy=False))
        # Integers are kept as small as they travel, and handed out as int32.
        values = np.asarray(held)
        values = values.astype(np.int32, copy=False) if values.dtype.kind == "i" else values
        self._charge(round, values)
        return values

    def _charge(self, round: int, values: npt.NDArray[Any]) -> None:
        """Write the charge of these very numbers to the disk before they leave: once, however often they are sent again."""
        charge = self._privacy.charge(round)
        if charge is None:
            return
        made = hashlib.sha256(values.tobytes())
        if not len(values):  # nothing is shared: what was made is the site's own model of this round
            for name, tensor in sorted(self._site_state(round)["personal"].items()):
                made.update(name.encode() + tensor.numpy().tobytes())
        digest = made.hexdigest()
        charged = self._ledger.entries()
        if any(entry.get("contribution") == digest for entry in charged):
            return
        if not self._privacy.affords([*charged, charge]):
            after, claim = self._privacy.spent([*charged, charge]), self._privacy.statement.words()
            text = (
                f"this site has been charged {len(charged)} times; once more would bring epsilon to {after:.4g}, above the claim: {claim}"
            )
            raise PolicyRefusal(text, place=self._site)
        self._ledger.append({"round": round, "site": self._site, "contribution": digest, **charge})

    def _make(
        self, round: int, weights: Mapping[str, npt.NDArray[Any]], pipeline: Pipeline | None, keep: Iterable[int]
    ) -> npt.NDArray[Any]:
        """Train, and keep the state after the round."""
        started = time.perf_counter()
        parts, config = self._parts, self._parts.config
        state = self._site_state(round - 1)
        model = self._place(weights, state)
        data = self._training(round, state, private=True)
        with seeded(parts.seeds.integer("round", round, "site", self._site, "update")):
            update, method = self._update(model, data, state["method"])
        self._clock["train"] = self._clock.get("train", 0.0) + time.perf_counter() - started

        values: npt.NDArray[Any] = np.empty(0, np.int32)
        saturated = 0
        if pipeline is not None:
            weight = self._privacy.constant_weight or parts.personalization.weight(data.examples)
            generator = parts.seeds.generator("round", round, "site", self._site, "rounding")
            values, saturated = pipeline.encode(to_numpy(update.delta), weight, update.metrics, generator)
        after = {"personal": to_numpy(personal_state(model, parts.layout(metrics=False))), "method": plain_state(method)}
        if config.training.keep_optimizer and data.optimizer_state is not None:
            after["optimizer"] = data.optimizer_state
        if not self._store.rounds():
            # What a run goes back to that is resumed before this site's first round.
            before = {"personal": to_numpy(state["personal"]), "method": plain_state(state["method"])}
            self._store.save_state(0, before, ())
        charged = {"charged": len(self._ledger.entries())} if self._privacy.charge(round) is not None else {}
        self._store.save_state(round, {**after, "saturated": saturated, **charged}, keep)
        return values

    def _update(self, model: torch.nn.Module, data: LocalTraining, state: Any) -> tuple[Update, Any]:
        """What this site would share, with the rule of the privacy mechanism: a new one each round."""
        plain = self._plain_rule()
        rule = self._privacy.gradient_rule(plain)
        if rule is plain or self._privacy.placement == "local":
            return self._parts.personalization.local_update(model, data, rule, state)
        # The noise comes later, so one gradient is all that may be shared (`shares_one_gradient`). It is taken as it was made: weights
        # minus weights would round it to the weights' precision, and the sensitivity of its integers would be another.
        return one_gradient(model, data, rule), state

    def scores(self, round: int, weights: Mapping[str, npt.NDArray[Any]], splits: Iterable[Split], *, keep: bool = False) -> Scores:
        """Scores of the shared weights after ``round`` and, where the method personalizes, of this site's own model.

        ``keep`` writes to the site's own folder the very model that was scored, its own where it has one (``personalized.safetensors``),
        and the score of each patient (group), :data:`GROUP_SCORES`, for intervals over patients.
        """
        started = time.perf_counter()
        parts = self._parts
        state = self._site_state(round)
        data = held_out(parts.task, self._site, parts.load(self._site))
        out: Scores = {}
        groups: dict[str, Any] = {}
        own: dict[str, torch.Tensor] = {}
        with seeded(parts.seeds.integer("evaluation", round, "site", self._site)):
            for kind in weight_kinds(parts.personalization):
                model = self._place(weights, state)
                if kind == "personalized":
                    model = self._adapted(model, round, state)
                if keep:
                    own = {n: t.detach().cpu().clone().contiguous() for n, t in model.state_dict().items()}
                for name, part in data:
                    for split in splits:
                        if not len(part.part(split)):
                            continue
                        predictions = predict_examples(model, part.part(split), parts.spec.size)
                        out[name, split, kind] = {m: float(v) for m, v in parts.task.score(predictions).items()}
                        if keep:
                            groups.setdefault(name, {}).setdefault(split, {})[kind] = group_scores(parts.spec, predictions)
        if keep:
            from safetensors.torch import save

            write_atomic(self._store.folder / "personalized.safetensors", save(own))
            metric = "dice" if parts.spec.kind == "segmentation" else "accuracy"
            write_atomic(self._store.folder / GROUP_SCORES, json.dumps({"metric": metric, "sites": groups}).encode())
        self._clock["evaluate"] = self._clock.get("evaluate", 0.0) + time.perf_counter() - started
        return out

    def _adapted(self, model: torch.nn.Module, round: int, state: Mapping[str, Any]) -> torch.nn.Module:
        data = self._training(round, {**state, "optimizer": None})
        # Plain autograd: the adapted model stays here, and no privacy mechanism is charged for it.
        return self._parts.personalization.adapt(model, data, self._plain_rule(), state["method"])

    def _site_state(self, round: int) -> dict[str, Any]:
        """The state after a round; before a site's first, the method's own beginning."""
        held = self._store.state(round)
        if held is not None:
            return {"personal": to_torch(held["personal"]), "method": tensor_state(held["method"]), "optimizer": held.get("optimizer")}
        model = self._parts.model
        load_state(model, self._parts.initial_state)  # the process's one network may hold another site's weights
        with seeded(self._parts.seeds.integer("initial-state", "site", self._site)):
            method = self._parts.personalization.init(model)
        return {"personal": self._parts.initial_personal, "method": method, "optimizer": None}

    def _place(self, weights: Mapping[str, npt.NDArray[Any]], state: Mapping[str, Any]) -> torch.nn.Module:
        model = self._parts.model
        load_state(model, to_torch(weights), state["personal"])
        return model

    def _training(self, round: int, state: Mapping[str, Any], *, private: bool = False) -> LocalTraining:
        parts, training = self._parts, self._parts.config.training
        examples = parts.load(self._site).train
        if self._cache is None and training.cache and not training.augment and fits_cache(examples, len(parts.task.sites())):
            self._cache = TensorCache(examples, next(parts.model.parameters()).dtype, device_of(training))
        return LocalTraining(
            examples,
            training,
            parts.seeds,
            site=self._site,
            round=round,
            rounds=parts.config.run.rounds,
            cache=self._cache,
            optimizer_state=state.get("optimizer") if training.keep_optimizer else None,
            sampler=self._sampler(examples.groups) if private else None,
        )

    def _sampler(self, groups: npt.NDArray[Any]) -> Sampler | None:
        """Of the privacy mechanism; None where it takes the run's own order."""
        rate = self._privacy.sample_rate
        return None if rate is None else Sampler(partial(self._privacy.sample, groups), rate)

    def _plain_rule(self) -> PlainGradients:
        if self._plain is None:
            self._plain = plain_rule(self._parts, self._parts.load(self._site).train)
        return self._plain


def one_gradient(model: torch.nn.Module, data: LocalTraining, rule: GradientRule) -> Update:
    """The update of one step of plain gradient descent: minus the learning rate times the gradient of one batch."""
    model.train()
    model.zero_grad(set_to_none=True)  # what a rule leaves out must not be another gradient, made before without noise
    rule(model, next(data.batches()))
    named = model.named_parameters(remove_duplicate=False)
    return Update({n: torch.zeros_like(p, device="cpu") if p.grad is None else -data.learning_rate * p.grad.cpu() for n, p in named})


def plain_rule(parts: Assembly, examples: Examples) -> PlainGradients:
    """Autograd of the task's loss; class weights are of these training examples, where they are balanced."""
    training = parts.config.training
    balance = class_weights(training, examples, len(parts.spec.classes))
    dtype = next(parts.model.parameters()).dtype
    weights = None if balance is None else torch.tensor(balance, dtype=dtype, device=device_of(training))
    # The loss alone: what is handed to a learning rule must not lead to the images of the task.
    loss = parts.task.loss
    if getattr(loss, "__func__", None) is Task.loss:
        loss = partial(default_loss, parts.spec.kind)
    return plain_gradients(lambda outputs, targets: loss(outputs, targets, weights), training.precision)


def group_scores(spec: TaskSpec, predictions: Predictions) -> dict[str, list[Any]]:
    """The score of each group (patient, smear, volume), see :func:`.metrics.score_groups`, and its number of examples."""
    values = score_groups(spec, predictions)
    _, counts = np.unique(predictions.groups, return_counts=True)
    return {"groups": [str(g) for g in values], "values": list(values.values()), "counts": counts.tolist()}


def plain_state(state: Any) -> Any:
    """A method's state as the codec carries it."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().numpy()
    return {k: plain_state(v) for k, v in state.items()} if isinstance(state, Mapping) else state


def tensor_state(state: Any) -> Any:
    """The inverse of :func:`plain_state`."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(np.array(state))
    return {k: tensor_state(v) for k, v in state.items()} if isinstance(state, Mapping) else state

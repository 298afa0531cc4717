"""A round of a run, held once more with given images: one step at every site, through the run's own gradient rule, clip, noise, encoding
and secure sum, with real keys and bytes. What came over the wire is what an attack is given.

A site's step is plain gradient descent at the round's learning rate: what is staged is the most telling step a site can make. Several
epochs of training mix many images; one step on one image is the case in which a defence is needed most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.engines.rehearsal import Rehearsal
from pppml_core.evidence.recording import Passage, Recorder
from pppml_core.evidence.view import seen_of
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.pipeline import Pipeline, contribution_ranges
from pppml_core.federation.trainer import plain_rule
from pppml_core.interfaces.aggregation import Session, Sum
from pppml_core.interfaces.attack import Arrays, Images, Seen, Vantage
from pppml_core.interfaces.engine import Topology
from pppml_core.interfaces.personalization import DrawnBatch
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.learning.arrays import load_state, to_numpy, to_torch
from pppml_core.learning.training import DTYPES, device_of, learning_rate_factor
from pppml_core.randomness import seeded
from pppml_core.values import ValueSpec, rms


@dataclass(frozen=True)
class Staged:
    """A held round; ``contributions``: what each site put into the sum."""

    round: int
    weights: Arrays
    after: Arrays
    cohort: tuple[str, ...]
    passages: tuple[Passage, ...]
    states: Mapping[str, Mapping[str, Any]]
    contributions: Mapping[str, npt.NDArray[Any]]
    session: Session
    pipeline: Pipeline
    summed: Sum
    _seen: dict[Vantage, Seen] = field(default_factory=dict, repr=False)

    def seen(self, vantage: Vantage) -> Seen:
        """What this adversary saw of it; made once, since to decode what a coalition can decrypt takes its time."""
        if vantage not in self._seen:
            self._seen[vantage] = self._look(vantage)
        return self._seen[vantage]

    def _look(self, vantage: Vantage) -> Seen:
        return seen_of(
            vantage,
            self.passages,
            self.session,
            self.pipeline,
            round=self.round,
            weights=self.weights,
            after=self.after,
            cohort=self.cohort,
            states=self.states,
            contributions=self.contributions,
            summed=self.summed,
        )


class Stage:
    """Holds rounds with the parts of a run.

    Args:
        parts: of the run.
        privacy: its plan.
        sizes: training examples of each site.
        topology: of the engine it stands for.
    """

    def __init__(self, parts: Assembly, sizes: Mapping[str, int], topology: Topology = "p2p") -> None:
        self.parts, self.sites, self._topology = parts, tuple(sizes), topology
        self.privacy: PrivacyPlan = parts.mechanism.plan(parts.privacy_setting(sizes))
        self._initial_rms = rms(to_numpy(parts.initial_weights), list(parts.initial_weights))
        self._rules: dict[str, Any] = {}
        self._sessions: dict[ValueSpec, Session] = {}

    def learning_rate(self, round: int) -> float:
        """Of a step in that round."""
        training = self.parts.config.training
        return training.optimizer.lr * learning_rate_factor(training, round, self.parts.config.run.rounds)

    def hold(self, round: int, weights: Arrays, batches: Mapping[str, Images], seed: int) -> Staged:
        """Hold it: ``weights`` the shared ones it begins with, ``batches`` what each site makes its step of."""
        deltas = {site: self.step(site, round, weights, batches[site]) for site in self.sites}
        shared = self.parts.shared
        public = {t.name: np.mean([np.asarray(d[t.name], np.float64) for d in deltas.values()], axis=0) for t in shared}
        encoding = self.parts.config.encoding
        # As a run would set them after a round of such steps.
        ranges = contribution_ranges(shared, encoding, rms(public, list(public)), self._initial_rms) if encoding.use == "fixed" else ()
        pipeline = self.parts.pipeline(round, ranges, 1, self.privacy)
        contributions = {
            site: pipeline.encode(delta, 1, {}, self.parts.seeds.generator("staged", round, seed, site))[0]
            for site, delta in deltas.items()
        }
        session = self._session(pipeline.spec)
        recorder = Recorder()
        rehearsal = Rehearsal(
            session,
            {site: partial(_given, values) for site, values in contributions.items()},
            transcript=recorder,
            topology=self._topology,
            remember=True,
        )
        summed = rehearsal.run().sum
        mean, _, _ = pipeline.decode(pipeline.released(summed.total))
        after = {n: (np.asarray(w) + mean[n]).astype(np.asarray(w).dtype) if n in mean else w for n, w in weights.items()}
        passages, states = tuple(recorder.passages), rehearsal.remembered()
        return Staged(round, weights, after, self.sites, passages, states, contributions, session, pipeline, summed)

    def _session(self, value: ValueSpec) -> Session:
        # It holds no state; to plan parameters of an encryption takes as long as to encrypt.
        if value not in self._sessions:
            self._sessions[value] = self.parts.aggregator.plan(value, self.sites)
        return self._sessions[value]

    def step(self, site: str, round: int, weights: Arrays, batch: Images) -> dict[str, npt.NDArray[Any]]:
        """The update of one step of descent at a site, by the run's gradient rule, before clip and noise of the whole."""
        parts, training = self.parts, self.parts.config.training
        model = parts.model
        load_state(model, to_torch(dict(weights)), parts.initial_personal)
        device, dtype = device_of(training), DTYPES[training.precision]
        images = torch.from_numpy(batch.images).to(device, dtype)
        targets = torch.from_numpy(batch.targets).to(device)
        if site not in self._rules:
            self._rules[site] = plain_rule(parts, parts.load(site).train)
        rule = self.privacy.gradient_rule(self._rules[site])
        drawn: Any = (images, targets)
        if self.privacy.sample_rate is not None:
            drawn = DrawnBatch(images, targets, np.ones(len(images)))
        model.train()
        model.zero_grad(set_to_none=True)
        with seeded(parts.seeds.integer("staged", round, site)):
            rule(model, drawn)
        rate = self.learning_rate(round)
        named, state = dict(model.named_parameters(remove_duplicate=False)), model.state_dict()
        out: dict[str, npt.NDArray[Any]] = {}
        for tensor in parts.shared:
            p = named.get(tensor.name)
            if p is None:  # a running statistic
                made = state[tensor.name].detach().cpu().numpy() - np.asarray(weights[tensor.name])
            else:
                made = np.zeros(tensor.shape, np.float32) if p.grad is None else -rate * p.grad.detach().cpu().numpy()
            out[tensor.name] = made
        return out


def _given(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values

"""Noise, ledger and manifest over whole runs of the tiny task: what leaves the sites, what is decoded, what is on disk when.

The secure sum is an ideal one: nobody sees a single update, says its guarantee, and so mechanisms rely on it; but the test reads what each
site puts in. The noise is seen by itself under a task whose loss is zero.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.api import Experiment, Run
from pppml_core.builtin.configs import TinyTaskConfig
from pppml_core.builtin.plain import Plain, PlainSession
from pppml_core.builtin.tiny import TinyTask
from pppml_core.component import ComponentConfig
from pppml_core.engines.config import LocalConfig
from pppml_core.engines.local import LocalEngine
from pppml_core.federation.ledger import Ledger
from pppml_core.federation.pipeline import levels_of
from pppml_core.interfaces.aggregation import Guarantees
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.interfaces.reporter import Reporter
from pppml_core.registry import Registry
from pppml_core.testing.chances import cosine, cosine_limit, variance_interval
from pppml_core.testing.privacy_bench import PrivacyBench, Vector
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import decode_message
from pppml_core.wire.transcript import read_payload, read_transcript

TASK = TinyTaskConfig(sites=4, examples=48)
#: loses this site where a run has a dropout.
LOST = "site_3"


class IdealSession(PlainSession):
    """``plain``, with the guarantees of a secure sum that one site may leave."""

    @property
    def guarantees(self) -> Guarantees:
        """Nobody sees an update."""
        return replace(super().guarantees, sees_update=(), sees_weight=(), dropouts=1, coalition_curious=len(self.cohort) - 2)


class IdealSum(Plain):
    """An ideal secure sum. In truth the server reads everything: for tests alone."""

    def plan(self, value: ValueSpec, cohort: Any) -> IdealSession:
        """A session for any value."""
        return IdealSession(value, cohort)


class NothingToLearn(TinyTask):
    """The tiny task with a loss of zero: what moves a model is noise."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Zero, with a gradient of zero."""
        return 0.0 * outputs.sum()


class Watching(LocalEngine):
    """Looks into a site's ledger at the moment its contribution leaves: ``seen`` has site, round and the number of entries."""

    def __init__(self) -> None:
        super().__init__(LocalConfig())
        self.seen: list[tuple[str, int, int]] = []

    def connect(self, job: Any) -> Any:
        """The transport, with a look at each reply."""
        inner, seen = super().connect(job), self.seen

        class Transport:
            parallel = 1
            clock, close = inner.clock, inner.close

            def deliver(self, frames: Any) -> Iterator[Any]:
                for site, reply in inner.deliver(frames):
                    message = decode_message(reply)
                    if message.kind == "reply" and message.stage == "contribute":
                        entries = Ledger(job.folder / site / "ledger.jsonl").entries()
                        seen.append((site, message.round, len(entries)))
                    yield site, reply

        return Transport()


class Stops(Reporter):
    """Ends the run, once, where the second round is evaluated."""

    def __init__(self) -> None:
        super().__init__(ComponentConfig())
        self.stopped = False

    def handle(self, event: Mapping[str, Any]) -> None:
        """As if somebody had pressed a key."""
        if (event.get("round"), event.get("stage")) == (2, "evaluate") and not self.stopped:
            self.stopped = True
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Sent:
    """What a site put into a sum: ``update`` in the update's unit, noise included, and the integers beside it (weight, metrics)."""

    site: str
    round: int
    update: Vector
    rest: npt.NDArray[np.int64]


class PrivacyRuns(PrivacyBench):
    """The part of :class:`~pppml_core.testing.PrivacySuite` about whole runs."""

    # -- helpers ------------------------------------------------------------------------------------------------------------------------

    def experiment(self, *, task: type[TinyTask] = TinyTask, rounds: int = 2, **sections: Any) -> Experiment:
        """A run of four sites, one step a round, by FedAvg at a learning rate of 1."""
        return Experiment(
            task=task(TASK),
            aggregator=IdealSum(ComponentConfig()),
            privacy=self.mechanism(),
            training={"steps": 1, "batch_size": 12, "optimizer": {"use": "sgd", "lr": 1.0}, "device": "cpu"},
            run={"rounds": rounds, "seed": 8, "transcript": "payloads"},
            encoding={"range": 100.0, "bits": 24},
            registry=Registry.only(),
            **sections,
        )

    @contextmanager
    def silent(self, rounds: int = 2, *, lost: bool = False) -> Iterator[Run]:
        """A run in which there is nothing to learn."""
        faults = [{"site": LOST, "stage": "contribute", "do": "drop", "times": 99}] if lost else []
        made = self.experiment(task=NothingToLearn, rounds=rounds, engine={"use": "local", "faults": faults})
        with tempfile.TemporaryDirectory() as folder:
            yield made.run(Path(folder) / "run", reporters=False, report=False)

    def plan_of(self, run: Run) -> PrivacyPlan:
        """The plan of that run, as each party made it."""
        parts = run._assembly
        return parts.mechanism.plan(parts.privacy_setting({s.slug: len(parts.load(s.slug).train) for s in parts.task.sites()}))

    def added(self, run: Run) -> dict[tuple[str, int], Vector]:
        """What each site put into each sum, in steps of the mechanism."""
        step = self.step(self.plan_of(run))
        return {(s.site, s.round): s.update / step for s in sent(run)}

    def decoded(self, run: Run) -> Vector:
        """How far a run of one round moved the model, as a sum over its survivors in steps."""
        from safetensors.torch import load_file

        final, first = load_file(run.folder / "model.safetensors"), run._assembly.initial_state
        moved = np.concatenate([(final[t.name].double() - first[t.name].double()).numpy().ravel() for t in run._assembly.shared])
        return np.asarray(moved * len(run.result["survivors"]["1"]) / self.step(self.plan_of(run)))

    # -- noise --------------------------------------------------------------------------------------------------------------------------

    def test_the_noise_leaves_the_sites_and_is_in_the_decoded_sum(self) -> None:
        """If this fails: what leaves a site, or the sum that moves the model, does not have the noise that is stated.

        Each site's own has the variance of one share, the sum that of as many shares as there are survivors, and never less than is
        charged: with all sites, and with one that was lost. With placement ``server`` all of it is in the sum.
        """
        self.noised()
        for lost in (False, True):
            with self.silent(1, lost=lost) as run:
                plan = self.plan_of(run)
                stated, survivors = self.stated(plan), run.result["survivors"]["1"]
                assert len(survivors) == TASK.sites - lost
                alone = plan.placement == "server"
                parties = 1 if alone else len(survivors)
                charge = plan.charge(1)
                assert charge is not None
                needed = (self.charged(charge).noise_multiplier * stated.sensitivity) ** 2
                for (site, _), noise in self.added(run).items():
                    if alone:
                        assert np.abs(noise).max() <= 1, f"{site} adds something, and the statement says that the server does"
                    else:
                        self._has(noise, stated.share_variance, f"what leaves {site}")
                total = self.decoded(run)
                self._has(total, parties * stated.share_variance, f"the decoded sum over {len(survivors)} sites")
                ratio = float(np.mean(total**2)) / needed
                assert ratio > variance_interval(total.size)[0], f"the sum has {ratio:.3g} of the variance that is charged"

    def _has(self, noise: Vector, variance: float, what: str) -> None:
        ratio, (low, high) = float(np.mean(noise**2)) / variance, variance_interval(noise.size, 10)
        assert low < ratio < high, f"{what} has {ratio:.3g} of the variance that is stated"

    def test_noise_of_rounds_sites_and_runs_is_unrelated(self) -> None:
        """If this fails: the same noise is used in two rounds, at two sites, or again in a run of the same seed."""
        self.noised()
        found: list[Vector] = []
        for _ in range(2):
            with self.silent(2) as run:
                whole = list(self.added(run).values()) if self.plan_of(run).placement != "server" else [self.decoded(run)]
                found += whole
        pairs = [(i, j) for i in range(len(found)) for j in range(i)]
        for i, j in pairs:
            value = cosine(found[i], found[j])
            assert abs(value) < cosine_limit(found[i].size, len(pairs)), f"two noises have a correlation of {value:.3g}"

    # -- what else leaves ---------------------------------------------------------------------------------------------------------------

    def test_only_noised_numbers_and_a_constant_weight_leave(self) -> None:
        """If this fails: something in a contribution depends on a site's images or their number, and carries no noise.

        The sites of the run have different images and different numbers of them. What goes with the update must be the same at all.
        """
        self.noised()
        with tempfile.TemporaryDirectory() as folder:
            run = self.experiment().run(Path(folder) / "run", reporters=False, report=False)
            rows = json.loads((run.folder / "manifest.json").read_text())["contribution"]
            assert {row["role"] for row in rows} == {"parameter", "weight"}, "the manifest names more than parameters and a weight"
            rest = [s.rest.tolist() for s in sent(run)]
            assert len(rest) == 2 * TASK.sites
            assert all(r == rest[0] for r in rest), f"beside the update: {rest}"
            assert run.result["privacy"].items() >= json.loads(json.dumps(self.plan_of(run).statement.to_dict())).items()

    # -- the ledger ---------------------------------------------------------------------------------------------------------------------

    def test_each_contribution_is_charged_before_it_leaves(self) -> None:
        """If this fails: a contribution left whose charge was not on the disk, or no charge was ever made; ``charge`` pays for its round."""
        self.noised()
        watch = Watching()
        with tempfile.TemporaryDirectory() as folder:
            self.experiment(engine=watch).run(Path(folder) / "run", reporters=False, report=False)
        assert len(watch.seen) == 2 * TASK.sites
        for site, round, entries in watch.seen:
            assert entries >= round, f"round {round} left {site} with {entries} charges on its disk"

    def test_resume_forgets_nothing_and_new_noise_costs_again(self) -> None:
        """If this fails: after a stop the ledger is shorter, or a contribution that was lost and made anew is not charged again.

        It was made with new noise; so the same charge twice, unless the noise is not new.
        """
        self.noised()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            made = self.experiment(reporters=[Stops()], rounds=3)
            try:
                made.run(path, report=False)
            except KeyboardInterrupt:
                pass
            site = path / "sites" / "site_2"
            before = (site / "ledger.jsonl").read_text() if (site / "ledger.jsonl").exists() else ""
            for held in site.glob("contribution-*"):
                held.unlink()
            made.run(path, report=False)
            after = (site / "ledger.jsonl").read_text() if (site / "ledger.jsonl").exists() else ""
            assert after.startswith(before)
            rounds = [entry.get("round") for entry in Ledger(site / "ledger.jsonl").entries()]
            assert rounds[:3] == [1, 2, 2], f"the rounds that were charged: {rounds}"


def sent(run: Run) -> list[Sent]:
    """Every contribution of a run, from the recorded messages."""
    rows = json.loads((run.folder / "manifest.json").read_text())["contribution"]
    parts = [row for row in rows if row["role"] == "parameter"]
    scale = np.repeat([row["range"] / levels_of(row["bits"]) for row in parts], [int(np.prod(row["shape"])) for row in parts])
    out = []
    for hop in read_transcript(run.folder):
        if hop.stage != "contribute" or hop.sender == "server":
            continue
        message = decode_message(read_payload(run.folder, hop.sha256))
        if message.kind == "reply" and (values := message.body.get("values")) is not None:
            out.append(Sent(hop.sender, hop.round, values[: len(scale)] * scale, values[len(scale) :].astype(np.int64)))
    return out



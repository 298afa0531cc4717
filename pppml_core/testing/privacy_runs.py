"""Noise, ledger and manifest over whole runs of the tiny task: what leaves the sites, what is decoded, what is on disk when.

The secure sum is an ideal one: nobody sees a single update, says its guarantee, and so mechanisms rely on it; but the test reads what each
site puts in. The noise is seen by itself under a task whose loss is zero.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pppml_core.api import Experiment, Run
from pppml_core.builtin.configs import TinyTaskConfig
from pppml_core.builtin.tiny import TinyTask
from pppml_core.component import ComponentConfig
from pppml_core.federation.ledger import Ledger
from pppml_core.federation.pipeline import levels_of
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.registry import Registry
from pppml_core.testing.chances import cosine, cosine_limit, variance_interval
from pppml_core.testing.privacy_bench import PrivacyBench, Vector
from pppml_core.testing.privacy_doubles import IdealSum, NothingToLearn, QuicklyScored, Stops, Watching
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import SERVER
from pppml_core.wire.transcript import read_payload, read_transcript

SITES = 4
ROUNDS = 2
#: is lost where a run has a dropout.
LOST = "site_3"


@dataclass(frozen=True)
class Sent:
    """What a site put into a sum: ``update`` in the update's unit, noise included, and the integers beside it (weight, metrics)."""

    site: str
    round: int
    update: Vector
    rest: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Held:
    """What is read of a run: what was sent, how far the model moved as a flat vector, and how it was planned."""

    sent: list[Sent]
    moved: Vector
    survivors: list[str]
    plan: PrivacyPlan
    roles: set[str]


class PrivacyRuns(PrivacyBench):
    """The part of :class:`~pppml_core.testing.PrivacySuite` about whole runs."""

    # -- helpers ------------------------------------------------------------------------------------------------------------------------

    def experiment(self, *, task: type[TinyTask] = QuicklyScored, rounds: int = ROUNDS, **sections: Any) -> Experiment:
        """A run of four sites, one step a round, by FedAvg at a learning rate of 1."""
        return Experiment(
            task=task(TinyTaskConfig(sites=SITES, examples=48)),
            aggregator=IdealSum(ComponentConfig()),
            privacy=self.mechanism(),
            training={"steps": 1, "batch_size": 12, "optimizer": {"use": "sgd", "lr": 1.0}, "device": "cpu"},
            run={"rounds": rounds, "seed": 8, "transcript": "payloads", "evaluate_every": 2},
            encoding={"range": 100.0, "bits": 24},
            registry=Registry.only(),
            **sections,
        )

    def run(self, **sections: Any) -> Held:
        """A run, read and thrown away."""
        made = self.experiment(**sections)
        with tempfile.TemporaryDirectory() as folder:
            return read(made.run(Path(folder) / "run", reporters=False, report=False))

    def silent(self) -> Held:
        """A run in which there is nothing to learn, with all sites."""
        made: Held = self.once("silent", lambda: self.run(task=NothingToLearn))
        return made

    def silent_with_dropout(self) -> Held:
        """The same of one round, in which a site is lost."""
        fault = {"site": LOST, "stage": "contribute", "do": "drop", "times": 99}
        sections = {"task": NothingToLearn, "rounds": 1, "engine": {"use": "local", "faults": [fault]}}
        made: Held = self.once("dropout", lambda: self.run(**sections))
        return made

    def ordinary(self) -> tuple[Held, Watching]:
        """A run that learns, with an eye on the ledgers."""
        watch = Watching()
        made: tuple[Held, Watching] = self.once("ordinary", lambda: (self.run(engine=watch), watch))
        return made

    # -- noise --------------------------------------------------------------------------------------------------------------------------

    def test_the_noise_is_in_what_leaves_the_sites(self) -> None:
        """If this fails: noise is computed and thrown away on its way, or is not where the placement says that it is.

        What each site sends has the variance of one share. With placement ``server`` it has no noise yet.
        """
        self.noised()
        for run in (self.silent(), self.silent_with_dropout()):
            for s in run.sent:
                noise = s.update / self.step(run.plan)
                if run.plan.placement == "server":
                    assert np.abs(noise).max() <= 1, f"{s.site} adds noise, and the statement says that the server does"
                else:
                    same_variance(noise, self.stated(run.plan).share_variance, f"what leaves {s.site}", share=11)

    def test_the_noise_is_in_the_decoded_sum(self) -> None:
        """If this fails: the sum that moves the model has not the noise of its survivors, or less than the ledger is charged for.

        With all sites and with one that was lost, whose share is then missing.
        """
        self.noised()
        for run, rounds, survivors in ((self.silent(), ROUNDS, SITES), (self.silent_with_dropout(), 1, SITES - 1)):
            assert len(run.survivors) == survivors
            stated, charge = self.stated(run.plan), run.plan.charge(1)
            assert charge is not None, "a claim without a charge"
            total = run.moved * survivors / self.step(run.plan)
            parties = 1 if run.plan.placement == "server" else survivors
            what = f"the decoded sum over {survivors} sites"
            same_variance(total, rounds * parties * stated.share_variance, what, share=4)
            ratio = float(np.mean(total**2)) / (rounds * (self.charged(charge).noise_multiplier * stated.sensitivity) ** 2)
            assert ratio > variance_interval(total.size, 4)[0], f"{what} has {ratio:.3g} of the variance that is charged"

    def test_noise_of_rounds_sites_and_runs_is_unrelated(self) -> None:
        """If this fails: the same noise is used in two rounds, at two sites, or again in a run of the same seed."""
        self.noised()
        runs = self.silent(), self.silent_with_dropout()
        by_server = runs[0].plan.placement == "server"
        found = [run.moved for run in runs] if by_server else [s.update for run in runs for s in run.sent]
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
        run, _ = self.ordinary()
        assert run.roles == {"parameter", "weight"}, f"the manifest names {', '.join(sorted(run.roles))}"
        assert len(run.sent) == ROUNDS * SITES
        rest = [s.rest.tolist() for s in run.sent]
        assert all(r == rest[0] for r in rest), f"beside the updates: {rest}"

    # -- the ledger ---------------------------------------------------------------------------------------------------------------------

    def test_each_contribution_is_charged_before_it_leaves(self) -> None:
        """If this fails: a contribution left whose charge was not on the disk. ``charge(round)`` pays for that very round."""
        self.noised()
        _, watch = self.ordinary()
        assert len(watch.seen) == ROUNDS * SITES
        for site, round, entries in watch.seen:
            assert entries >= round, f"round {round} left {site} with {entries} charges on its disk"

    def test_resume_forgets_nothing_and_new_noise_costs_again(self) -> None:
        """If this fails: a ledger is shorter after a stop, or a contribution that was lost and made anew has the very same noise.

        New noise is a charge of its own in the site's ledger; where the server adds it, each asking is in the server's.
        """
        plan = self.noised()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            made = self.experiment(reporters=[Stops()], rounds=3)
            with pytest.raises(KeyboardInterrupt):
                made.run(path, report=False)
            ledger = Ledger(path / "ledger.jsonl" if plan.placement == "server" else path / "sites" / "site_2" / "ledger.jsonl")
            before = ledger.entries()
            for held in (path / "sites" / "site_2").glob("contribution-*"):
                held.unlink()
            made.run(path, report=False)
            after = ledger.entries()
        assert after[: len(before)] == before, "charges have vanished"
        rounds = [entry.get("round") for entry in after]
        # (The claim pays for three rounds. Whether a fourth charge is made is the budget's matter.)
        assert rounds[:3] == [1, 2, 2], f"the rounds that were charged: {rounds}"


def same_variance(noise: Vector, variance: float, what: str, *, share: int) -> None:
    """Assert that noise has this variance."""
    ratio, (low, high) = float(np.mean(noise**2)) / variance, variance_interval(noise.size, share)
    assert low < ratio < high, f"{what} has {ratio:.3g} of the variance that is stated"


def read(run: Run) -> Held:
    """What the tests look at."""
    from safetensors.torch import load_file

    parts = run._assembly
    final = load_file(run.folder / "model.safetensors")
    moved = np.concatenate([(final[t.name].double() - parts.initial_state[t.name].double()).numpy().ravel() for t in parts.shared])
    sizes = {s.slug: len(parts.load(s.slug).train) for s in parts.task.sites()}
    plan = parts.mechanism.plan(parts.privacy_setting(sizes))
    rows = json.loads((run.folder / "manifest.json").read_text())["contribution"]
    return Held(sent(run, rows), moved, run.result["survivors"]["1"], plan, {row["role"] for row in rows})


def sent(run: Run, rows: list[dict[str, Any]]) -> list[Sent]:
    """Every contribution of a run, from the recorded messages and the manifest's rows."""
    parts = [row for row in rows if row["role"] == "parameter"]
    scale = np.repeat([row["range"] / levels_of(row["bits"]) for row in parts], [int(np.prod(row["shape"])) for row in parts])
    out = []
    for hop in read_transcript(run.folder):
        if hop.stage != "contribute" or hop.sender == SERVER:
            continue
        message = decode_message(read_payload(run.folder, hop.sha256))
        if message.kind == "reply" and (values := message.body.get("values")) is not None:
            out.append(Sent(hop.sender, hop.round, values[: len(scale)] * scale, values[len(scale) :].astype(np.int64)))
    return out

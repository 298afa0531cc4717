"""Attacks that a config names: made while the run goes on, without any trace in it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import pppml_core as pppml
from pppml_core import Component, ComponentConfig
from pppml_core.errors import ConfigError, PlanRefused
from pppml_core.evidence import attacks, scheduled
from pppml_core.evidence.rounds import weights_before
from pppml_core.interfaces.attack import Attack, Reconstruction, Verdict
from pppml_core.interfaces.reporter import Reporter
from pppml_core.learning.arrays import to_numpy
from pppml_core.registry import Registry


class Look(ComponentConfig):
    depth: int = 3


class Blind(Attack):
    """Guesses a picture; draws numbers of its own and of everybody."""

    calls: ClassVar[list[int]] = []

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        self.calls.append(view.last.round)
        return Reconstruction({"images": ctx.public.images[:1]})


class Members(Attack):
    answers = "members"

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        return Reconstruction({"members": ctx.queries.images.mean(axis=(1, 2, 3))})


class Audit(Attack):
    reads_view = False

    def run(self, view: Any, budget: Any, ctx: Any) -> Verdict:
        return Verdict("inconclusive", f"up to round {ctx.round}, depth {self.config.depth}")


class Worse(Audit):
    def run(self, view: Any, budget: Any, ctx: Any) -> Verdict:
        raise ValueError("this should not have happened")


@pytest.fixture(scope="module")
def registry():
    torch.set_num_threads(1)
    offered = [Component(c.__name__.lower(), Look, f"{__name__}:{c.__name__}", "for a test") for c in (Blind, Members, Audit, Worse)]
    return Registry.only({"attack": offered})


class Listener(Reporter):
    def __init__(self) -> None:
        super().__init__(ComponentConfig())
        self.events: list[dict[str, Any]] = []

    def open(self, folder: Any) -> None: ...
    def handle(self, event: Any) -> None:
        self.events.append(dict(event))

    def close(self) -> None: ...


def experiment(registry: Registry, listed: list[Any], **run: Any) -> tuple[pppml.Experiment, Listener]:
    listener = Listener()
    sections: dict[str, Any] = {"task": {"use": "tiny", "sites": 2, "examples": 10}, "run": {"rounds": 2, "transcript": "payloads", **run}}
    # With a live reporter there are live objects, so attacks run in this process.
    made = pppml.Experiment(**sections, attacks=listed, reporters=[listener], registry=registry)
    return made, listener


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(scheduled, "Effort", lambda: attacks.Effort(cheap=1, optimized=1, gallery=3))


def test_a_run_is_the_same_with_attacks_as_without(registry, tmp_path):
    Blind.calls.clear()
    listed = [{"use": "blind", "rounds": [1, 2]}, {"use": "blind", "vantage": "public"}, {"use": "audit", "rounds": [1]}, "audit"]
    done, heard = {}, {}
    for name, given in (("with", listed), ("without", [])):
        made, heard[name] = experiment(registry, given)
        done[name] = made.run(tmp_path / name, report=False)
    assert done["with"].result["model_sha256"] == done["without"].result["model_sha256"]
    told = [(e["attack"], e["vantage"], e["round"]) for e in heard["with"].events if e["event"] == "attack"]
    assert told[0] == ("blind", "server", 1)
    blind = [("blind", "public", 2), ("blind", "server", 1), ("blind", "server", 2)]
    assert sorted(told) == [("audit", "server", 1), ("audit", "server", 2), *blind]
    order = [(e["event"], e.get("attack"), e.get("round")) for e in heard["with"].events if e["event"] in ("round", "attack", "round-end")]
    assert order.index(("attack", "blind", 1)) < order.index(("attack", "blind", 2)) < order.index(("attack", "audit", 1))
    assert len(list((done["with"].folder / "attacks").glob("*.json"))) == 5
    assert not [e for e in heard["with"].events if e["event"] == "warning"]


def test_a_failing_attack_is_a_warning_and_not_the_end_of_the_run(registry, tmp_path, monkeypatch):
    made, heard = experiment(registry, ["worse", {"use": "blind", "rounds": [1]}, "audit"], rounds=1)
    attack = attacks.Target.attack
    monkeypatch.setattr(attacks.Target, "attack", lambda *a, **k: (_ for _ in ()).throw(ConfigError("no luck")))
    done = made.run(tmp_path / "a", report=False)
    assert done.result["rounds"] == 1
    warned = [e["text"] for e in heard.events if e["event"] == "warning"]
    assert len(warned) == 2, "each is tried once"
    assert "blind could not be made: no luck" in warned[0]
    assert "worse could not be made: ValueError: this should not" in warned[1]
    assert [p.name for p in (done.folder / "attacks").iterdir()] == ["audit-server-r1.json"]
    monkeypatch.setattr(attacks.Target, "attack", attack)
    late = scheduled.Scheduled(done.folder, done.assembly, lambda event: None, live=True)
    late.finish(done.result)
    assert (done.folder / "attacks/blind-server-r1.json").exists(), "what an interrupted run did not come to is made at its end"


def test_an_attack_of_ones_own_is_told_where_when_and_how_much(registry, tmp_path):
    """``module:attribute`` takes what every attack takes."""
    Blind.calls.clear()
    own = {"use": f"{__name__}:Blind", "args": {"depth": 5}, "vantage": "public", "rounds": [1], "victims": 2, "seconds": 0.5}
    made, heard = experiment(registry, [own], rounds=1)
    done = made.run(tmp_path / "a", report=False)
    assert not [e for e in heard.events if e["event"] == "warning"]
    (path,) = (done.folder / "attacks").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["vantage"], record["round"], record["victims"]) == ("public", 1, 2)
    assert record["settings"] == {"args": {"depth": 5}}
    assert (record["asked"]["victims"], record["asked"]["seconds"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("attack", "run", "said"),
    [
        ({"use": "blind", "vantage": "sever"}, {}, "did you mean 'server'"),
        ({"use": "blind", "vantage": "site:site_9"}, {}, "site_9"),
        ({"use": "blind", "rounds": [3]}, {}, "there is no round 3; the run has 2"),
        ({"use": "blind", "rounds": [2]}, {"transcript": "sizes"}, "set run.transcript: payloads"),
        ("members", {}, "set run.transcript: secrets"),
        ({"use": "audit", "victims": 3}, {}, "brings evidence of its own; leave out victims"),
    ],
)
def test_what_a_plan_refuses(registry, tmp_path, attack, run, said):
    made, _ = experiment(registry, [attack], **run)
    with pytest.raises(PlanRefused, match=r"attacks\[0\]") as refused:
        made.run(tmp_path / "a")
    assert said in str(refused.value)
    assert not (tmp_path / "a").exists()


def test_two_attacks_with_one_record_are_refused(registry):
    made, _ = experiment(registry, [{"use": "blind", "depth": 1}, {"use": "blind", "depth": 2}])
    assert any("would replace that of attacks[0]" in text for text in made._plan().misfits)


def test_the_model_before_each_round(registry, tmp_path):
    made, _ = experiment(registry, [], rounds=3)
    done = made.run(tmp_path / "a", report=False)
    models = [weights_before(done.folder, done.assembly, r, 3) for r in (1, 2, 3, 4)]
    initial = to_numpy(done.assembly.initial_weights)
    final = done.model().state_dict()
    for name in initial:
        np.testing.assert_array_equal(models[0][name], initial[name])
        np.testing.assert_array_equal(models[3][name], final[name].numpy())
    moved = [[np.abs(after[n] - before[n]).max() for n in initial] for before, after in pairwise(models)]
    sizes = [max(one) for one in moved]
    assert all(1e-5 < s < 1.0 for s in sizes)
    alone = pppml.Experiment(task={"use": "tiny", "sites": 2, "examples": 10}, run={"rounds": 3}, registry=registry)
    bare = alone.run(tmp_path / "b", reporters=False, report=False)
    with pytest.raises(ConfigError, match="did not keep the model that round 2"):
        weights_before(bare.folder, bare.assembly, 2, 3)
    assert set(weights_before(bare.folder, bare.assembly, 4, 3)) == set(initial)

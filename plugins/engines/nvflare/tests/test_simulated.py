"""Runs in NVFlare's simulator: the same model, manifest and ledgers as in one process, whatever the aggregator and whatever is lost."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import psutil
import pytest
import yaml

from pppml_core.api import Experiment
from pppml_core.errors import RunFailed
from pppml_core.federation.letter import frame_in
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import SUMS
from pppml_core.wire.transcript import read_transcript
from pppml_nvflare.transport import NvflareTransport

TASK = {"use": "tiny", "sites": 3, "examples": 12}
RING = {"use": "cyclic-he", "backend": {"use": "tenseal", "scheme": "bfv"}}
AGGREGATORS = {"plain": "plain", "secagg-plus": "secagg-plus", "cyclic-he": RING}


def installed(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")


ALL = [
    "plain",
    pytest.param("secagg-plus", marks=installed("pppml_secagg_plus")),
    pytest.param("cyclic-he", marks=installed("pppml_cyclic_he", "pppml_he_tenseal", "tenseal")),
]
#: a stage in which every site is asked once.
STAGES = {"secagg-plus": "mask", "cyclic-he": "confirm"}


def run(folder, engine, aggregator="plain", rounds=2, **sections):
    config = {"task": TASK, "aggregator": AGGREGATORS[aggregator], "run": {"rounds": rounds, "seed": 3, "name": aggregator}, **sections}
    return Experiment({**config, "engine": engine}).run(folder, reporters=False, report=False)


def same(ours, theirs):
    for name in ("model_sha256", "survivors", "metrics", "guarantees", "privacy"):
        assert ours.result[name] == theirs.result[name], name
    assert json.loads((ours.folder / "manifest.json").read_text()) == json.loads((theirs.folder / "manifest.json").read_text())


def stages(run):
    """Who sent what to whom, in the order of rounds and stages."""
    hops = [h for h in read_transcript(run.folder) if h.kind in (*SUMS, "reply")]
    return sorted((h.round, h.attempt, h.stage, h.sender, h.recipient, h.carrier) for h in hops)


@pytest.mark.parametrize("aggregator", ALL)
def test_the_same_as_in_one_process(tmp_path, federation, aggregator):
    ours = run(tmp_path / "ours", "nvflare", aggregator)
    theirs = run(tmp_path / "theirs", {"use": "local", "topology": "star"}, aggregator)
    same(ours, theirs)
    assert stages(ours) == stages(theirs)


@pytest.mark.parametrize("aggregator", ALL[1:])
def test_the_same_where_an_answer_is_lost(tmp_path, federation, aggregator):
    faults = [{"do": "drop-reply", "site": "site_2", "stage": STAGES[aggregator]}]
    ours = run(tmp_path / "ours", {"use": "nvflare", "faults": faults}, aggregator, 1)
    theirs = run(tmp_path / "theirs", {"use": "local", "topology": "star", "faults": faults}, aggregator, 1)
    same(ours, theirs)
    assert stages(ours) == stages(theirs)
    assert max(attempt for _, attempt, *_ in stages(ours)) == 2


@installed("pppml_cyclic_he", "pppml_he_tenseal", "tenseal")
def test_a_ring_goes_from_site_to_site(tmp_path, federation):
    """That of updates, and that of scores."""
    sums = {"run": {"rounds": 1, "seed": 3, "name": "ring", "metrics": "sum"}}
    ours = run(tmp_path / "ours", {"use": "nvflare", "topology": "p2p"}, "cyclic-he", **sums)
    theirs = run(tmp_path / "theirs", "local", "cyclic-he", **sums)
    same(ours, theirs)
    assert stages(ours) == stages(theirs)
    direct = [h for h in read_transcript(ours.folder) if "server" not in (h.sender, h.recipient)]
    assert {(h.sender, h.recipient) for h in direct} >= {("site_1", "site_2"), ("site_2", "site_3")}
    assert all(h.carrier == () and h.size > 1000 for h in direct)
    assert {h.kind for h in direct} == {"session", "metrics"}


@installed("pppml_dp")
def test_the_same_ledgers(tmp_path, federation):
    def ledgers(folder):
        lines = [json.loads(line) for path in sorted(folder.rglob("ledger.jsonl")) for line in path.read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "contribution"} for line in lines]

    noisy = {"use": "dp-update", "clip": 1.0, "noise_multiplier": 2.0}
    ours = run(tmp_path / "ours", "nvflare", rounds=1, privacy=noisy)
    name = (ours.folder / "run.id").read_text()
    own = [line for site in ("site_1", "site_2", "site_3") for line in ledgers(federation / "homes" / site / "runs" / name)]
    theirs = run(tmp_path / "theirs", "local", rounds=1, privacy=noisy)
    assert own == ledgers(theirs.folder / "sites")
    assert len(own) == 3
    assert ours.result["privacy"] == theirs.result["privacy"]


def test_a_site_refuses_before_anything_is_trained(tmp_path, federation):
    policy = federation / "homes" / "site_2" / "policy.yaml"
    before = policy.read_text()
    policy.write_text(yaml.safe_dump({**(yaml.safe_load(before) or {}), "min_cohort": 4}))
    try:
        with pytest.raises(RunFailed, match="site_2: it refused: min_cohort"):
            run(tmp_path / "refused", "nvflare")
    finally:
        policy.write_text(before)
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()
    assert not list((tmp_path / "refused" / "checkpoints").iterdir())


def test_a_site_whose_process_dies_is_lost_for_that_attempt_only(tmp_path, federation, monkeypatch):
    """Killed when training is asked for, as for want of memory: the round is held without it, and it is back in the next."""
    ask = NvflareTransport._ask

    def kill_then_ask(self, site, frame):
        message = decode_message(frame_in(frame))
        if (site, message.round, message.stage) == ("site_2", 1, "contribute"):
            lodgings = [p for p in psutil.process_iter(["cmdline"]) if "pppml_nvflare.lodging" in (p.info["cmdline"] or [])]
            (victim,) = [p for p in lodgings if Path(p.info["cmdline"][-2]) == federation / "homes" / site]
            victim.kill()
            psutil.wait_procs([victim], timeout=10)
        return ask(self, site, frame)

    monkeypatch.setattr(NvflareTransport, "_ask", kill_then_ask)
    config = {"task": TASK, "run": {"rounds": 2, "seed": 3, "name": "killed"}, "engine": "nvflare", "reporters": ["jsonl"]}
    done = Experiment(config).run(tmp_path / "killed", report=False)
    assert done.result["survivors"] == {"1": ["site_1", "site_3"], "2": ["site_1", "site_2", "site_3"]}
    events = [json.loads(line) for line in (done.folder / "events.jsonl").read_text().splitlines()]
    lost = [event for event in events if event["event"] == "site-lost"]
    assert [(event["site"], event["round"]) for event in lost] == [("site_2", 1)]
    assert "ended (exit code -9)" in lost[0]["reason"]

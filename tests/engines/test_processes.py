"""The engine `processes`: the model of `local`, dropouts where processes are killed or stall, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pppml_core.api import Experiment
from pppml_core.errors import ConfigError, PlanRefused
from pppml_core.federation.identity import provision
from pppml_core.interfaces.reporter import Reporter
from pppml_core.testing.policies import insist

SITES = ["site_1", "site_2", "site_3"]
TWO = {"use": "tiny", "sites": 2}
MASKED = "pppml_core.testing.insecure:InsecureMaskedSum"


def go(folder, **sections):
    sections = {"task": "tiny", "reporters": ["jsonl"], **sections, "run": {"seed": 5, **sections.get("run", {})}}
    return Experiment(**sections).run(folder, report=False)


def told(run, kind):
    return [e for line in (run.folder / "events.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == kind]


def alive():
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def test_killed_and_stalled_processes_are_lost_sites_and_the_model_is_that_of_local(tmp_path):
    """Round 1 is whole; then a process is killed or stalls, at each stage, and is back in the next round with what it had kept."""
    strikes = [
        {"site": "site_2", "stage": "open", "round": 2, "do": "kill"},
        {"site": "site_1", "stage": "contribute", "round": 3, "do": "kill"},
        {"site": "site_2", "stage": "evaluate", "round": 3, "do": "kill"},
        {"site": "site_2", "stage": "contribute", "round": 4, "do": "stall"},
        {"site": "site_1", "stage": "contribute", "round": 5, "do": "duplicate"},
    ]
    # What was killed before it trained has nothing of that round; what stalled has trained in the end, for nobody.
    drops = [{**strikes[0], "do": "drop"}, {**strikes[1], "do": "drop"}, {**strikes[3], "do": "drop-reply"}]
    training = {"keep_optimizer": True, "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9}}
    sections = {"task": TWO, "run": {"rounds": 5}, "training": training}
    run = go(tmp_path / "r", engine={"use": "processes", "timeout": 15, "faults": strikes}, **sections)
    assert alive() == []
    both = ["site_1", "site_2"]
    assert run.result["survivors"] == {"1": both, "2": ["site_1"], "3": ["site_2"], "4": ["site_1"], "5": both}
    assert told(run, "warning") == [], "every fault has struck"
    reference = go(tmp_path / "l", engine={"use": "local", "topology": "star", "faults": drops}, **sections)
    assert run.result["model_sha256"] == reference.result["model_sha256"]
    assert run.result["metrics"] == reference.result["metrics"]
    assert list(run.metrics) == list(reference.metrics), "who was killed while it scored is asked again"
    reasons = {(e["round"], e["stage"]): (e["site"], e["reason"]) for e in told(run, "site-lost")}
    assert reasons[2, "open"] == ("site_2", "its process ended (exit code -9)")
    assert reasons[4, "contribute"] == ("site_2", "no answer within 15 seconds")
    assert len(reasons) == len(strikes) - 1


def test_a_sum_of_several_stages_loses_who_was_killed_and_counts_the_others(tmp_path):
    """A masked sum over a star: whoever is killed once it has the request for its masked values is taken out of the sum."""
    strikes = [
        {"site": "site_3", "stage": "masked", "round": 1, "do": "kill"},
        {"site": "site_1", "stage": "advertise", "round": 2, "do": "kill-before"},
    ]
    sections = {"run": {"rounds": 2, "metrics": "sum"}, "aggregator": MASKED}
    run = go(tmp_path / "r", engine={"use": "processes", "faults": strikes}, **sections)
    assert run.result["survivors"] == {"1": SITES[:2], "2": SITES[1:]}
    reference = go(tmp_path / "l", engine={"use": "local", "faults": [{**strike, "do": "drop"} for strike in strikes]}, **sections)
    assert run.result["model_sha256"] == reference.result["model_sha256"]
    assert list(run.metrics) == list(reference.metrics)


class Interrupt(Reporter):
    """Ctrl-C in the middle of a round."""

    def __init__(self):
        self.pids = []

    def handle(self, event):
        if event["event"] == "stage" and event["stage"] == "open":
            self.pids = [child.pid for child in alive()]
            raise KeyboardInterrupt


def test_homes_policies_and_an_interrupted_run(tmp_path):
    """Homes that exist are used as they are: their identities, and their policies. An interrupt leaves no process, and the run goes on."""
    homes = tmp_path / "homes"
    provision(homes, (*SITES[:2], "server"))
    keys = {path: path.read_bytes() for path in homes.rglob("identity.key")}
    insist(homes / "site_2", "plain_updates: false")
    interrupt = Interrupt()
    sections = {"engine": {"use": "processes", "homes": str(homes)}, "run": {"rounds": 1}}
    made = Experiment(task=TWO, reporters=["jsonl", interrupt], **sections)
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path / "r", report=False)
    assert len(interrupt.pids) == 2
    assert alive() == []
    interrupt.handle = lambda event: None
    run = made.run(tmp_path / "r", report=False)
    assert run.result["survivors"] == {"1": ["site_1"]}
    (reason,) = {e["reason"] for e in told(run, "site-lost")}
    assert reason == "it refused: plain_updates: server would see this site's update"
    assert {path: path.read_bytes() for path in homes.rglob("identity.key")} == keys
    assert not list(run.folder.rglob("identity.key"))
    assert not list(homes.rglob("state-*")), "a home holds who a site is, not what a run left behind"
    (homes / "site_1" / "identity.key").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        Experiment(task=TWO, **sections).run(tmp_path / "s", reporters=False, report=False)
    assert alive() == []


def test_what_cannot_be_run_between_processes_is_refused_by_the_plan(tmp_path):
    with pytest.raises(PlanRefused, match="live Python objects"):
        Experiment(task="tiny", model=lambda: None, engine="processes").run(tmp_path / "r")


#: A coordinator whose sites train until they are stopped.
ENDLESS = """
import sys
from pppml_core.api import Experiment
made = Experiment(task={"use": "tiny", "sites": 2}, training={"epochs": 10**6}, engine="processes", reporters=["jsonl"])
made.run(sys.argv[1], report=False)
"""


def test_sites_end_when_their_coordinator_is_killed_in_the_middle_of_training(tmp_path):
    coordinator = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path / "r")])
    try:
        sites = []
        until = time.monotonic() + 120
        while not list((tmp_path / "r" / "sites").glob("*/attempts")) and time.monotonic() < until:
            time.sleep(0.1)
        sites = psutil.Process(coordinator.pid).children()
        assert len(sites) == 2
        time.sleep(1.0)
        assert sum(site.cpu_times().user for site in sites) > 1, "they are at work"
        os.kill(coordinator.pid, signal.SIGKILL)
        coordinator.wait()
        gone, left = psutil.wait_procs(sites, timeout=10)
        assert (len(gone), left) == (2, [])
    finally:
        for process in sites:
            if process.is_running():
                process.kill()
        coordinator.kill()
        coordinator.wait()

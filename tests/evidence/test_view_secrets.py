"""``run.transcript: secrets``: what is kept, where, who allows it, and that it is said first."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest
import torch

import pppml_core as pppml
from pppml_core.engines.local import InProcess
from pppml_core.errors import RunFailed
from pppml_core.evidence.recording import Recording
from pppml_core.evidence.vantage import read_vantage
from pppml_core.evidence.view import read_view
from pppml_core.federation.policy import Policy, load_policy
from pppml_core.federation.secret_record import WARNING, SecretRecord, merged
from pppml_core.federation.store import SiteStore
from pppml_core.registry import Registry
from pppml_core.testing.policies import insist

REGISTRY = Registry.discover()
SITES = ("site_1", "site_2", "site_3")


def experiment(**sections):
    run = {"rounds": 2, "seed": 1, "transcript": "secrets", **sections.pop("run", {})}
    given = {"task": "tiny", "aggregator": "secagg-plus", "training": {"steps": 1}, "registry": REGISTRY, **sections}
    return pppml.Experiment(run=run, **given)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return experiment().run(tmp_path_factory.mktemp("run") / "r", reporters=False)


def test_every_party_keeps_its_own_in_its_own_folder(run):
    for site in SITES:
        folder = run.folder / "sites" / site / "secrets"
        assert sorted(p.name for p in folder.iterdir()) == [f"{r:06d}{end}" for r in (1, 2) for end in ("-000001.states", ".contribution")]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}
        state = SecretRecord(folder.parent).states(2, 1)
        assert {"seed", "mask_private", "box_private"} <= set(state)
        last = SiteStore(folder.parent)._read("contribution-update")["values"]  # the round's cache holds what left
        assert np.array_equal(SecretRecord(folder.parent).contribution(2), last)
        assert not np.array_equal(SecretRecord(folder.parent).contribution(1), last)
        assert SecretRecord(folder.parent).contribution(3) is None
        assert SecretRecord(folder.parent).states(2, 2) == {}


def test_nothing_of_it_is_kept_unless_asked_for(tmp_path):
    for kept in ("sizes", "payloads"):
        done = experiment(run={"rounds": 1, "transcript": kept}).run(tmp_path / kept, reporters=False, report=False)
        assert not list(done.folder.rglob("secrets"))
        assert (done.folder / "transcripts" / "payloads").exists() == (kept == "payloads")
        assert WARNING not in json.loads((done.folder / "plan.json").read_text())["warnings"]


def test_it_changes_nothing_in_the_run(run, tmp_path):
    other = experiment(run={"transcript": "sizes"}).run(tmp_path / "r", reporters=False, report=False)
    assert other.result["model_sha256"] == run.result["model_sha256"]


def test_plan_and_report_say_so_first(run):
    plan = json.loads((run.folder / "plan.json").read_text())
    assert plan["warnings"][0] == WARNING
    page = (run.folder / "report.html").read_text()
    assert '<p class="alert">SECRETS ARE KEPT (run.transcript: secrets)' in page
    assert page.index("SECRETS ARE KEPT") < page.index("sites together trained")


def test_a_real_site_refuses_unless_its_policy_allows_it(tmp_path):
    """Homes of its own: the default refuses. A simulated site's home is under the run's folder; a rule written there holds too."""
    from pppml_core.federation.identity import provision
    from pppml_core.interfaces.engine import Engine

    class Homes(Engine):
        def __init__(self, homes):
            self.homes = homes

        def connect(self, job):
            provision(job.homes or job.folder, (*SITES, "server"))
            return InProcess(job, amnesia=False)

    def held(name, homes=None, **policies):
        for site, rules in policies.items():
            home = (homes or tmp_path / name / "sites") / site
            insist(home, rules)
        made = experiment(engine=Homes(homes), run={"rounds": 1, "min_cohort": 3, "on_abort": "stop"}, registry=REGISTRY)
        return made.run(tmp_path / name, reporters=False, report=False)

    assert Policy().record_secrets is False
    with pytest.raises(RunFailed, match="record_secrets: this run would write down this site's keys"):
        held("real", tmp_path / "homes")
    assert not list((tmp_path / "real").rglob("secrets"))
    allowing = dict.fromkeys(SITES, "record_secrets: true\n")
    assert held("allowed", tmp_path / "homes-2", **allowing).result["survivors"]["1"] == list(SITES)
    assert load_policy(tmp_path / "homes-2" / "site_1").record_secrets
    assert held("simulated", site_2="min_cohort: 2\nrecord_secrets: true\n").result["survivors"]["1"] == list(SITES)
    with pytest.raises(RunFailed, match="record_secrets"):
        held("unwilling", site_2="record_secrets: false\n")


def test_a_site_that_is_made_anew_before_every_message_keeps_the_same(tmp_path):
    """With ``amnesia`` the record has the names and the public values of a run without; the view decodes the same sums."""
    views = []
    for name, amnesia in (("once", False), ("anew", True)):
        engine = {"use": "local", "amnesia": amnesia}
        done = experiment(run={"rounds": 1}, engine=engine).run(tmp_path / name, reporters=False, report=False)
        views.append(read_view(done.folder, done._assembly, read_vantage("server+site:site_1", SITES), 1).last)
        state = SecretRecord(done.folder / "sites" / "site_2").states(1, 1)
        adverts = [p.message.body["advert"] for p in Recording(done.folder).passages(round=1) if "advert" in p.message.body]
        from pppml_core.federation.identity import public_key

        assert any(public_key(state["mask_private"]) in advert for advert in adverts), "the key that was really used"
    assert [s.sites for s in views[0].sights] == [s.sites for s in views[1].sights]
    assert set(views[0].secrets["site_1"]) == set(views[1].secrets["site_1"])
    for name, update in views[0].sights[0].update.items():
        assert np.array_equal(update, views[1].sights[0].update[name])


def test_a_resumed_run_goes_on_keeping(tmp_path):
    faults = [{"site": s, "stage": "mask", "round": 2, "attempt": 1, "do": "drop", "times": 1} for s in SITES[:2]]
    made = experiment(run={"rounds": 3, "on_abort": "stop"}, engine={"use": "local", "faults": faults})
    with pytest.raises(RunFailed):
        made.run(tmp_path / "r", reporters=False, report=False)
    record = SecretRecord(tmp_path / "r" / "sites" / "site_3")
    given_up = record.states(2, 1)
    done = made.run(tmp_path / "r", reporters=False, report=False, resume=True)
    assert given_up["seed"] == record.states(2, 1)["seed"] != record.states(2, 2)["seed"]
    for round in (1, 2, 3):
        found = read_view(done.folder, done._assembly, read_vantage("server+site:site_1+site:site_2", SITES), round)
        assert [s.sites for s in found.last.sights] == [("site_3",)]


def test_nothing_is_ever_forgotten():
    states = [{"a": 1, "shares": {"x": b"1"}}, {"b": 2, "shares": {"y": b"2"}}, {}, {"a": 3, "links": [1]}, {"links": [1, 2]}]
    assert merged(states) == {"a": 3, "b": 2, "shares": {"x": b"1", "y": b"2"}, "links": [1, 2]}
    assert states[0] == {"a": 1, "shares": {"x": b"1"}}


def test_a_torn_record_is_read_up_to_there(tmp_path):
    record = SecretRecord(tmp_path)
    record.note(1, 2, {"seed": b"s" * 32})
    record.note(1, 2, {})
    record.note(1, 2, {"key": b"k" * 32})
    (path,) = (tmp_path / "secrets").iterdir()
    whole = path.read_bytes()
    assert record.states(1, 2) == {"seed": b"s" * 32, "key": b"k" * 32}
    for cut in (1, 30, 9):
        path.write_bytes(whole[:-cut])
        assert record.states(1, 2) == {"seed": b"s" * 32}

"""Views of real runs with recorded secrets: each vantage decodes what it can, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pppml_core as pppml
from pppml_core.errors import ConfigError
from pppml_core.evidence.recording import Recording
from pppml_core.evidence.vantage import read_vantage
from pppml_core.evidence.view import decode_view, encode_view, read_view
from pppml_core.federation.secret_record import SecretRecord
from pppml_core.registry import Registry
from pppml_core.wire.messages import SERVER

TENSEAL = {"use": "tenseal"}
SUMS: dict[str, Any] = {
    "plain": {"aggregator": "plain"},
    "float": {"aggregator": "plain", "encoding": {"use": "float"}},
    "secagg-plus": {"aggregator": "secagg-plus"},
    "ring": {"aggregator": {"use": "cyclic-he", "rings": 1, "backend": TENSEAL}},
    "ring-star": {
        "aggregator": {"use": "cyclic-he", "rings": 1, "backend": TENSEAL},
        "engine": {"use": "local", "topology": "star", "amnesia": True},
    },
    "paper": {
        "aggregator": {"use": "cyclic-he", "variant": "paper", "backend": {**TENSEAL, "scheme": "ckks", "preset": "paper"}},
        "run": {"rounds": 1},
    },
    "he-fedavg": {"aggregator": {"use": "he-fedavg", "backend": TENSEAL}, "run": {"rounds": 1}},
}
SITES = ("site_1", "site_2", "site_3", "site_4")
ALL = frozenset(SITES)


class Finished:
    """A run of four sites, and what each site really added to its sums, decoded by hand."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        run = {"rounds": 2, "seed": 4, "transcript": "secrets", **sections.pop("run", {})}
        given = {"task": {"use": "tiny", "sites": 4}, "training": {"epochs": 1}, "registry": Registry.discover(), **sections}
        self.folder, self.rounds = folder, run["rounds"]
        self.parts = pppml.Experiment(run=run, **given).run(folder, reporters=False, report=False)._assembly
        self.recording = Recording(folder)

    def view(self, vantage: str, round: int | None = None, **options: Any) -> Any:
        return read_view(self.folder, self.parts, read_vantage(vantage, SITES), round or self.rounds, **options)

    def sights(self, vantage: str, round: int | None = None) -> dict[frozenset[str], Any]:
        found = self.view(vantage, round).last.sights
        assert len({s.sites for s in found}) == len(found)
        return {frozenset(s.sites): s for s in found}

    def truth(self, sites: Any, round: int | None = None) -> tuple[dict[str, np.ndarray], float]:
        """Mean update over these sites and its weight, from their recorded contributions and the announced ranges."""
        terms = next(p.message.body["terms"] for p in self.recording.passages(round=round or self.rounds, kinds=["open"]))
        values = {s: SecretRecord(self.folder / "sites" / s).contribution(round or self.rounds) for s in sites}
        total = np.sum([v.astype(np.float64) for v in values.values()], axis=0)
        at, out = 0, {}
        levels = 1.0 if self.parts.config.encoding.use == "float" else 32767.0
        shared = sum(t.size for t in self.parts.shared)
        weight = total[shared] / levels
        for i, tensor in enumerate(self.parts.shared):
            limit = 1.0 if levels == 1.0 else terms["ranges"][i] / levels
            out[tensor.name] = (total[at : at + tensor.size] * limit / weight).reshape(tensor.shape)
            at += tensor.size
        return out, weight * terms["max_weight"]

    def check(self, sight: Any, round: int | None = None, *, tolerance: float = 0.0) -> None:
        """The sight is the mean update of its sites: to the last bit of float32, and ``tolerance`` beyond."""
        expected, weight = self.truth(sight.sites, round)
        assert sight.weight == pytest.approx(weight, rel=1e-6 if not tolerance else 1e-2)
        for name, update in expected.items():
            np.testing.assert_allclose(sight.update[name], update, rtol=2e-7, atol=1e-9 + tolerance, err_msg=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)

    @cache
    def made(name: str) -> Finished:
        try:
            return Finished(tmp_path_factory.mktemp(name) / "run", **SUMS[name])
        except pppml.PppmlError as error:
            if "not installed" in str(error):
                pytest.skip(f"{name} is not installed")
            raise

    return made


#: consecutive models are float32: a weight of up to 1 in them says its update to half its last bit, times the weights that are divided.
MODELS = 1e-6


# -- each sum, each vantage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "float"])
def test_the_server_reads_every_update_of_a_plain_sum(finished, name):
    run = finished(name)
    for round in (1, 2):
        found = run.sights("server", round)
        assert set(found) == {*map(frozenset, zip(SITES)), ALL}
        for sites, sight in found.items():
            run.check(sight, round, tolerance=MODELS if sites == ALL else 0.0)


def test_others_of_a_plain_sum_see_models(finished):
    run = finished("plain")
    for vantage, sites in {
        "public": ALL,
        "site:site_2": ALL - {"site_2"},
        "site:site_1+site:site_3": {"site_2", "site_4"},
        "public+site:site_3": ALL - {"site_3"},
        "site:site_1+site:site_3+site:site_4": {"site_2"},
    }.items():
        found = run.sights(vantage)
        assert set(found) == {frozenset(sites)}, vantage
        run.check(found[frozenset(sites)], tolerance=MODELS)
    found = run.sights("link:server-site_3")
    assert set(found) == {ALL, ALL - {"site_3"}, frozenset(["site_3"])}  # the update as it travels, and consecutive models
    run.check(found[frozenset(["site_3"])])
    assert run.sights("link:site_3-server").keys() == found.keys()
    assert run.view("link:site_1-site_3").last.messages == ()


def test_secagg_plus_shows_the_sum_alone(finished):
    run = finished("secagg-plus")
    for size in range(4):
        for members in combinations(SITES, size):
            rest = ALL - set(members)
            found = run.sights("+".join(["server", *(f"site:{m}" for m in members)]))
            assert set(found) == {rest}
            run.check(found[rest])  # exactly: of one site, its own update
            if members:
                found = run.sights("+".join(f"site:{m}" for m in members))
                assert set(found) == {rest}
                run.check(found[rest], tolerance=MODELS)
    assert run.sights("+".join(["server", *(f"site:{m}" for m in SITES)])) == {}
    for site in SITES:  # masked numbers and boxes, and the models that anybody is sent
        assert set(run.sights(f"link:server-{site}")) == {ALL}
        run.check(run.sights(f"link:server-{site}")[ALL], tolerance=MODELS)


@pytest.mark.parametrize("name", ["ring", "ring-star"])
def test_one_ring_keeps_its_promise_and_no_more(finished, name):
    """The server with up to ``coalition_curious`` sites decodes only the sum; with one more, that the plan names, a site's update."""
    run = finished(name)
    promised = json.loads((run.folder / "plan.json").read_text())["guarantees"]
    isolated = set()
    for size in range(3):
        for members in combinations(SITES, size):
            rest = ALL - set(members)
            found = run.sights("+".join(["server", *(f"site:{m}" for m in members)]))
            for sight in found.values():
                run.check(sight)
            if size <= promised["coalition_curious"]:
                assert set(found) == {rest}
            isolated |= {frozenset(members)} if any(len(sites) == 1 for sites in found) else set()
    told = next(
        text for text in promised["assumes"] if text.startswith("the smallest coalition that reads one site's update is the server")
    )
    assert min(map(len, isolated)) == promised["coalition_curious"] + 1 == 2
    assert frozenset(told.partition(" with ")[2].split(", ")) in isolated


@pytest.mark.parametrize("name", ["ring", "ring-star"])
def test_neighbours_in_a_ring(finished, name):
    run = finished(name)
    path = _path(run)
    for place, site in enumerate(path):
        around = {path[place - 1], path[(place + 1) % 4]}
        view = run.view(f"neighbours:{site}")
        assert set(view.last.secrets) == around
        assert {frozenset(s.sites) for s in view.last.sights} == {ALL - around}  # from models: without the server no ring can be opened
        alone = run.view("+".join(f"site:{s}" for s in sorted(around)))
        assert encode_view(replace(view, vantage=alone.vantage)) == encode_view(alone)
    # With the server, and the key of the ring's initiator among them, they read the site between them.
    keyed = [s for place, s in enumerate(path) if path[0] in (path[place - 1], path[(place + 1) % 4])]
    for site in path:
        found = run.sights(f"server+neighbours:{site}")
        assert (frozenset([site]) in found) == (site in keyed)
        run.check(min(found.values(), key=lambda s: len(s.sites)))


def test_what_travels_between_two_sites_of_a_ring_is_sealed(finished):
    """Point to point a listener between two sites gets what one sends the other; on a star nothing passes there, but through the server."""
    run, star = finished("ring"), finished("ring-star")
    path = _path(run)
    heard = run.view(f"link:{path[0]}-{path[1]}").last
    assert [(m.stage, m.sender, m.recipient) for m in heard.messages] == [("ring-1", path[0], path[1])]
    assert (heard.sights, dict(heard.weights), dict(heard.secrets)) == ((), {}, {})
    assert star.view(f"link:{path[0]}-{path[1]}").last.messages == ()
    carried = [m for m in star.view("server").last.messages if m.stage == "ring-1" and SERVER not in (m.sender, m.recipient)]
    direct = [m for m in run.view("server").last.messages if m.stage == "ring-1" and SERVER not in (m.sender, m.recipient)]
    assert (len(carried), len(direct)) == (3, 0)


def test_two_neighbours_read_the_paper_ring(finished):
    """With the key that all sites share. As exact as the scheme: its error, in steps of the grid, is what the plan states."""
    run = finished("paper")
    error = _scheme_error(run)
    for site, others in (("site_2", {"site_1", "site_3"}), ("site_1", {"site_2", "site_4"})):  # site_1 adds the mask, and takes it off
        view = run.view(f"neighbours:{site}")
        assert set(view.last.secrets) == others
        run.check(next(s for s in view.last.sights if s.sites == (site,)), tolerance=error)
    (alone,) = run.view("site:site_2").last.sights
    assert set(alone.sites) == ALL - {"site_2"}  # from the models
    run.check(alone, tolerance=error)
    (summed,) = run.view("server").last.sights
    assert frozenset(summed.sites) == ALL
    run.check(summed, tolerance=error)
    order = _path(run)
    assert run.view(f"link:{order[1]}-{order[2]}").last.sights == ()


def test_any_site_and_the_server_read_he_fedavg(finished):
    run = finished("he-fedavg")
    assert set(run.sights("server")) == {ALL}
    for site in SITES:
        found = run.sights(f"server+site:{site}")
        assert set(found) == {*map(frozenset, zip(sorted(ALL - {site}))), ALL - {site}}
        for sight in found.values():
            run.check(sight)
        assert set(run.sights(f"site:{site}")) == {ALL - {site}}


# -- what is in a view --------------------------------------------------------------------------------------------------------------------


def test_models_go_to_whoever_was_sent_them(finished):
    run = finished("secagg-plus")
    initial = {t.name: run.parts.initial_weights[t.name].numpy() for t in run.parts.shared}
    from safetensors.numpy import load_file

    final = load_file(run.folder / "model.safetensors")
    for vantage in ("server", "public", "site:site_1", "link:server-site_1"):
        first, second = run.view(vantage).rounds
        assert (first.round, second.round) == (1, 2)
        for name, array in initial.items():
            assert np.array_equal(first.weights[name], array)
            assert np.array_equal(first.after[name], second.weights[name])
            assert np.array_equal(second.after[name], final[name])
            assert not np.array_equal(first.after[name], final[name])
    nothing = run.view("link:site_1-site_2").last
    assert (dict(nothing.weights), dict(nothing.after), nothing.messages, nothing.sights) == ({}, {}, (), ())
    public = run.view("public").last
    assert (public.messages, dict(public.secrets)) == ((), {})
    assert [one.round for one in run.view("public", 2, first=2).rounds] == [2]
    assert [s.released for s in decode_view(encode_view(run.view("public"))).last.sights] == [True]
    assert [s.released for s in decode_view(encode_view(run.view("server"))).last.sights] == [False]
    assert all(np.array_equal(run.recording.weights_before(1)[n], a) for n, a in initial.items())


SECRET = ("seed", "mask_private", "box_private", "hop", "secret", "private", "box-1")


def _secrets(run: Finished, site: str, round: int) -> set[bytes]:
    """Keys and seeds of a site, and its contribution."""
    state = SecretRecord(run.folder / "sites" / site).states(round, 1)
    found = {bytes(state[name]) for name in SECRET if name in state}
    assert found
    return {*found, SecretRecord(run.folder / "sites" / site).contribution(round).tobytes()}


@pytest.mark.parametrize("name", ["secagg-plus", "ring"])
@pytest.mark.parametrize("vantage", ["server", "site:site_1", "server+site:site_1+site:site_3", "neighbours:site_2", "link:server-site_2"])
def test_nobody_elses_secrets_are_in_a_view(finished, name, vantage):
    run = finished(name)
    if vantage == "neighbours:site_2" and name != "ring":
        with pytest.raises(ConfigError, match="no neighbours in this round"):
            run.view(vantage)
        return
    view = run.view(vantage)
    members = set(view.last.secrets)
    assert SERVER not in members or name == "ring"
    data = encode_view(view)
    for site in SITES:
        inside = [secret in data for secret in _secrets(run, site, 2) if len(secret) <= 32 or site not in members]
        assert all(inside) if site in members else not any(inside), site


@pytest.mark.parametrize(
    ("name", "vantage"), [("secagg-plus", "server+site:site_1"), ("ring", "server+site:site_1+site:site_3"), ("plain", "public")]
)
def test_a_view_needs_nobody_elses_files(finished, name, vantage, tmp_path):
    """The bytes are the same where what other parties recorded is gone: it was never read."""
    run = finished(name)
    before = encode_view(run.view(vantage))
    shutil.copytree(run.folder, tmp_path / "copy")
    members = {"site_1", "site_3", SERVER} if "site_3" in vantage else {"site_1", SERVER}
    for site in (*SITES, SERVER):
        if site not in members:
            shutil.rmtree(tmp_path / "copy" / "sites" / site)
    found = read_view(tmp_path / "copy", run.parts, read_vantage(vantage, SITES), 2)
    assert encode_view(found) == before


@pytest.mark.parametrize(
    ("name", "vantage"), [("secagg-plus", "server+site:site_1"), ("ring", "neighbours:site_2"), ("ring", "server+site:site_2")]
)
def test_another_patient_shows_through_the_sum_alone(finished, name, vantage, tmp_path):
    """Two runs whose data differ at one site outside the coalition: the same sums are decoded, and they differ by its update only."""
    run = finished(name)
    changed = _changed(name, tmp_path)
    before, after = run.view(vantage, 1).last, changed.view(vantage, 1).last
    assert [s.sites for s in before.sights] == [s.sites for s in after.sights]
    assert [(m.kind, m.stage, m.sender, m.recipient) for m in before.messages] == [
        (m.kind, m.stage, m.sender, m.recipient) for m in after.messages
    ]
    assert {p: sorted(state) for p, state in before.secrets.items()} == {p: sorted(state) for p, state in after.secrets.items()}
    own, weight = run.truth(["site_4"], 1)
    other, _ = changed.truth(["site_4"], 1)
    for one, two in zip(before.sights, after.sights, strict=True):
        assert "site_4" in one.sites
        for tensor, update in own.items():
            moved = (two.update[tensor].astype(float) - one.update[tensor]) * one.weight
            np.testing.assert_allclose(moved, (other[tensor] - update) * weight, atol=2 * MODELS * one.weight)
            assert np.abs(moved).max() > 0 or not np.abs(other[tensor] - update).any()


# -- what cannot be had --------------------------------------------------------------------------------------------------------------------


def test_what_was_not_recorded_is_asked_for(tmp_path):
    for kept in ("sizes", "payloads"):
        run = Finished.__new__(Finished)
        made = pppml.Experiment(task="tiny", registry=Registry.only(), run={"rounds": 1, "transcript": kept}, training={"steps": 1})
        run.folder, run.rounds = tmp_path / kept, 1
        run.parts = made.run(run.folder, reporters=False, report=False)._assembly
        for vantage in ("server", "site:site_1"):
            with pytest.raises(ConfigError) as caught:
                run.view(vantage)
            assert "run.transcript: secrets" in str(caught.value)
        if kept == "payloads":
            assert [s.sites for s in run.view("public").last.sights] == [("site_1", "site_2", "site_3")]
            assert ("site_2",) in [s.sites for s in run.view("link:site_2-server").last.sights]
    with pytest.raises(ConfigError, match="there is no round 2"):
        run.view("public", 2)
    with pytest.raises(ConfigError, match="site_1 has no neighbours"):
        run.view("neighbours:site_1")


def _path(run: Finished) -> list[str]:
    """The ring as its messages went: by the hops between sites in the transcript."""
    hops = [p.message for p in run.recording.passages(round=run.rounds) if p.message.kind == "session"]
    relayed = [m for m in hops if m.stage.startswith("ring")]
    return [m.recipient for m in relayed]


def _scheme_error(run: Finished) -> float:
    """Nine times the planned error of a difference of sums, in updates: steps of the grid, of the smallest weight's share."""
    guarantees = json.loads((run.folder / "plan.json").read_text())["guarantees"]
    told = next(text for text in guarantees["assumes"] if "standard deviation" in text)
    steps = float(told.partition("standard deviation ")[2].split()[0].rstrip(","))
    terms: Mapping[str, Any] = next(p.message.body["terms"] for p in run.recording.passages(round=1, kinds=["open"]))
    return 9 * (steps + 1) * max(terms["ranges"]) / 32767 / (24 / terms["max_weight"])


def _changed(name: str, folder: Path) -> Finished:
    """The same run, but site_4 has other images."""
    from pppml_core.builtin.configs import TinyTaskConfig
    from pppml_core.builtin.tiny import TinyTask

    class Other(TinyTask):
        def load(self, site: str) -> Any:
            config = TinyTaskConfig(sites=4, data_seed=77) if site == "site_4" else self.config
            return TinyTask(config).load(site)

    return Finished(folder / "changed", task=Other(TinyTaskConfig(sites=4)), **SUMS[name])

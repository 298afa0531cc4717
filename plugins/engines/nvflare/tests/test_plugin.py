"""The plugin's description, its settings and what it refuses, without NVFlare running."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import threading
import time

import pytest

from pppml_core import cli
from pppml_core.api import Experiment
from pppml_core.config import resolve
from pppml_core.engines.parties import HOME, HOMES, acquaint
from pppml_core.errors import ConfigError, RunFailed, WireError
from pppml_core.federation.home import open_home
from pppml_core.interfaces.engine import Job, Loss, Step, Walk
from pppml_core.registry import Registry
from pppml_core.testing.plugin_suite import PluginSuite
from pppml_core.testing.residents import ResidentsTransport
from pppml_core.wire.codec import decode, encode
from pppml_nvflare import conducting
from pppml_nvflare.bridge import LONGEST, STALE, Bridge, serve
from pppml_nvflare.config import NvflareConfig
from pppml_nvflare.engine import NvflareEngine
from pppml_nvflare.forms import read_walk, write_walk
from pppml_nvflare.homes import own_home
from pppml_nvflare.job import CLASSES, write_job
from pppml_nvflare.kits import admit, check, command, role


class TestPlugin(PluginSuite):
    plugin = "pppml_nvflare.plugin"


def engine(**settings):
    return NvflareEngine(NvflareConfig(**settings))


def test_what_cannot_be_run(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "nvflare" else find(name, *a))
    (missing,) = engine().misfits({})
    assert "NVFlare is not installed here" in missing
    assert engine(python="/opt/other/bin/python").misfits({}) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: find("json") if name == "nvflare" else find(name, *a))
    assert engine().misfits({}) == []
    assert engine().misfits({"reporters.0": object()}) == []
    (live,) = engine().misfits({"model": object()})
    assert "live Python objects (model)" in live
    assert [text.split(":")[0] for text in engine(environment="prod").misfits({})] == ["engine.kit", "engine.homes"]
    wrong = engine(environment="poc", kit=str(tmp_path), homes=str(tmp_path / "none")).misfits({})
    assert [text.split(":")[0] for text in wrong] == ["engine.homes", "engine.kit"]


def test_faults_pass_the_coordinator():
    fault = {"site": "a", "do": "drop"}
    assert engine(topology="p2p").topology == "p2p"
    assert engine(topology="p2p", faults=[fault]).topology == "star"


def test_where_a_transport_stands_already_nothing_is_missing(tmp_path):
    with conducting.inside(object(), {"server": tmp_path}):
        inside = engine(environment="prod")
        assert inside.misfits({}) == []
        assert inside.homes == {"server": tmp_path}
    assert conducting.here() is None


# -- homes ------------------------------------------------------------------------------------------------------------------------------


def test_a_party_finds_its_home_in_its_own_environment(tmp_path, monkeypatch):
    acquaint(tmp_path, ("a", "b", "server"))
    acquaint(tmp_path, ("a", "b", "server"))  # again: nothing changes
    assert set(open_home(tmp_path / "a").pinned) == {"a", "b", "server"}
    monkeypatch.delenv(HOME, raising=False)
    monkeypatch.delenv(HOMES, raising=False)
    with pytest.raises(ConfigError, match="PPPML_HOME does not name a home"):
        own_home("a")
    monkeypatch.setenv(HOMES, str(tmp_path))
    assert own_home("a") == tmp_path / "a"
    monkeypatch.setenv(HOME, str(tmp_path / "b"))
    assert own_home("b") == tmp_path / "b"
    with pytest.raises(ConfigError, match="this home is that of b"):
        own_home("a")


# -- forms ------------------------------------------------------------------------------------------------------------------------------

HASH = "0" * 64


@pytest.mark.parametrize(
    "walk",
    [
        Walk("a", b"reply"),
        Walk("b", Loss("gone", handed=True), (Step("server", "a", 3, HASH), Step("a", "b", 4, HASH))),
        Walk("b", Loss("never", handed=False), (Step("server", "a", 3, HASH),), ("c",), b"frame"),
    ],
)
def test_a_walk_as_bytes(walk):
    assert read_walk(write_walk(walk)) == walk


@pytest.mark.parametrize(
    "change",
    [
        {"at": 1},
        {"more": 1},
        {"steps": [["a", "b", 3]]},
        {"steps": [["a", "b", -1, HASH]]},
        {"steps": [["a", "b", 3, HASH.replace("0", "g")]]},
        {"steps": [["a", "b", True, HASH]]},
        {"bridged": [1]},
        {"handed": 1},
    ],
)
def test_what_is_no_walk(change):
    with pytest.raises(WireError):
        read_walk(encode({**decode(write_walk(Walk("a", b"reply"))), **change}))


# -- jobs and kits ----------------------------------------------------------------------------------------------------------------------


def classes_in(value):
    if isinstance(value, dict):
        return {v for k, v in value.items() if k == "path"}.union(*(classes_in(v) for v in value.values()), set())
    return set().union(*(classes_in(v) for v in value), set()) if isinstance(value, list) else set()


def test_a_job_names_only_what_sites_allow(tmp_path):
    job = write_job(tmp_path / "job", "j", ["a", "b"], {"timeout": 1.0, "silence": 2.0}, 30)
    found = {path.relative_to(job).as_posix(): json.loads(path.read_text()) for path in job.rglob("*.json")}
    assert sorted(found) == ["coordinator/config/config_fed_server.json", "meta.json", "site/config/config_fed_client.json"]
    assert set().union(*(classes_in(value) for value in found.values())) == set(CLASSES)
    assert found["meta.json"]["deploy_map"] == {"coordinator": ["server"], "site": ["a", "b"]}
    assert [path for path in job.rglob("*") if path.is_file() and path.suffix != ".json"] == []  # no code


def test_nvflare_has_these_classes():
    pytest.importorskip("nvflare", reason="NVFlare is not installed here")
    for name in CLASSES:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


DEFAULT = {
    "format_version": 2,
    "class_allow_list": ["nvflare.app_common.widgets.a.B"],
    "allow_log_streaming": True,
    "components": [{"id": "site_log_streamer", "path": "x.y"}, {"id": "process_launcher", "path": "z.w"}],
    "storage": {"root_dir": "/tmp/nvflare/jobs-storage"},
}


def kit(folder, kind="client", uid="a"):
    (folder / "startup").mkdir(parents=True)
    (folder / "local").mkdir()
    (folder / "startup" / f"fed_{kind}.json").write_text("{}")
    line = f'exec python3 -u -m nvflare -m "$WORKSPACE" -s fed_{kind}.json --set secure_train=true uid={uid} org=o config_folder=config'
    (folder / "startup" / "sub_start.sh").write_text(f"start_python() {{\n  {line}\n}}\n")
    (folder / "local" / "resources.json.default").write_text(json.dumps(DEFAULT))
    return folder


def test_a_kit_that_admits_only_this_engine(tmp_path):
    made = kit(tmp_path / "kit")
    with pytest.raises(ConfigError, match="does not yet say what it allows") as refused:
        check(made)
    assert "kits admit" in str(refused.value)
    resources = json.loads(admit(made, tmp_path / "s").read_text())
    assert resources["class_allow_list"] == list(CLASSES)
    assert resources["allow_log_streaming"] is False
    assert [part["id"] for part in resources["components"]] == ["process_launcher"]
    assert resources["storage"] == {"root_dir": f"{tmp_path}/s/jobs-storage"}
    check(made)
    server = kit(tmp_path / "server", "server")
    admit(server)
    assert json.loads((server / "local" / "resources.json").read_text())["storage"] == {"root_dir": f"{server}/storage/jobs-storage"}
    check(server)
    assert command(made, "py")[:4] == ["py", "-u", "-m", "nvflare.private.fed.app.client.client_train"]
    assert command(made, "py")[-4:] == ["secure_train=true", "uid=a", "org=o", "config_folder=config"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_allow_list": list(CLASSES[:-1])}, "class_allow_list lacks pppml_nvflare.site.Door"),
        ({"class_allow_list": None}, "cannot be read"),
        ({"components": DEFAULT["components"], "allow_log_streaming": True}, "logs would be streamed"),
        ({"storage": DEFAULT["storage"]}, "would keep its jobs in /tmp/nvflare/"),
    ],
)
def test_kits_that_are_refused(tmp_path, change, said):
    made = kit(tmp_path / "kit", "server" if "storage" in change else "client")
    path = admit(made)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=said):
        check(made)


def test_the_bridge_lies_where_a_server_that_was_not_started_here_sees_it(tmp_path, monkeypatch):
    """A service may have a /tmp of its own; the coordinator's home it has."""
    made = []

    class Transport:
        def __init__(self, *given):
            made.append(given[-1])

        def begin(self):
            """Nothing."""

    monkeypatch.setattr("pppml_nvflare.engine.NvflareTransport", Transport)
    acquaint(tmp_path / "homes", ("a", "server"))
    job = Job(bytes(16), {"run": {"name": "r"}, "training": {"threads": 1}}, tmp_path / "r" / "sites", ("a",), {}, {}, tmp_path / "homes")
    engine(environment="prod", kit=str(tmp_path), homes=str(tmp_path / "homes"))._begun(job)
    engine()._begun(job)
    assert made == [tmp_path / "homes" / "server", None]


def test_a_bridge_is_there_until_somebody_has_come(tmp_path):
    bridge = Bridge(tmp_path)
    assert bridge.path.is_relative_to(tmp_path)
    serving = threading.Thread(target=serve, args=(str(bridge.path), lambda asked: Walk("a", b"reply"), lambda: False))
    serving.start()
    bridge.await_job(10, str)
    assert list(tmp_path.iterdir()) == []
    assert bridge.ask("a", b"x") == b"reply"
    bridge.close()
    serving.join(10)
    assert not serving.is_alive()


def test_a_bridge_that_was_left_by_a_killed_process_is_removed(tmp_path):
    left, other = Bridge(tmp_path), Bridge(tmp_path)
    left._listening.close()
    os.utime(left.path.parent, (time.time() - STALE - 60,) * 2)
    again = Bridge(tmp_path)
    assert set(tmp_path.iterdir()) == {other.path.parent, again.path.parent}, "one that another run waits at stays"
    other.close()
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_a_bridge_whose_name_no_socket_may_have(tmp_path):
    place = tmp_path / ("n" * LONGEST)
    with pytest.raises(RunFailed, match="cannot be written: No such file"):
        Bridge(place)
    place.mkdir()
    with pytest.raises(RunFailed, match="too long for a socket") as refused:
        Bridge(place)
    assert "take a home whose name is" in refused.value.hint
    assert list(place.iterdir()) == []


def test_a_home_is_served_with_its_own_kit_only(tmp_path):
    acquaint(tmp_path / "homes", ("a", "server"))
    a, server = tmp_path / "homes" / "a", tmp_path / "homes" / "server"
    with pytest.raises(ConfigError, match="no startup kit is named"):
        engine().serve(a)
    with pytest.raises(ConfigError, match="no startup kit of NVFlare"):
        engine(kit=str(tmp_path)).serve(a)
    other = kit(tmp_path / "other", uid="b")
    admit(other)
    with pytest.raises(ConfigError, match="another name than a"):
        engine(kit="../../other").serve(a)  # from the home on
    with pytest.raises(ConfigError, match="it starts a client"):
        engine(kit=str(other)).serve(server)
    assert role(kit(tmp_path / "s", "server")) == "server"
    with pytest.raises(ConfigError, match="it starts a server"):
        engine(kit=str(tmp_path / "s")).serve(a)


def test_export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = f"silence: 30, homes: {tmp_path}, environment: poc"
    (tmp_path / "c.yaml").write_text(f"task: {{use: tiny, sites: 2}}\nrun: {{name: a.study}}\nengine: {{use: nvflare, {settings}}}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "nvflare", "c.yaml", "-o", "job"])
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.strip() == "job/pppml-a-study"
    job = tmp_path / "job" / "pppml-a-study"
    (coordinator,) = json.loads((job / "coordinator/config/config_fed_server.json").read_text())["components"]
    assert coordinator["args"] == {"timeout": 3600.0, "silence": 30.0, "parallel": 0}  # no bridge: NVFlare's server conducts it
    config = resolve(job / "coordinator/config/pppml.yaml", registry=Registry.discover())
    assert (config.engine.environment, config.engine.homes, config.engine.silence) == ("job", None, 30.0)
    assert str(tmp_path) not in (job / "coordinator/config/pppml.yaml").read_text()
    assert "nvflare job submit -j pppml-a-study --startup-kit ADMIN_KIT" in (tmp_path / "job/README.md").read_text()
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "nvflare", "c.yaml", "-o", "job"])
    assert ended.value.code == 2
    assert "not an empty folder" in capsys.readouterr().err


REAL = """
task: {use: image-set, kind: classification, channels: 1, size: [64, 64], classes: [normal, pneumonia]}
sites: {clinic_a: 412, clinic_b: 230, clinic_c: 305}
run: {name: xray, rounds: 2, metrics: sum}
model: tiny-net
"""


@pytest.mark.parametrize(
    "settings",
    ["nvflare", "local", "{use: nvflare, environment: prod, homes: /nowhere/homes, kit: /nowhere/kit}", "{use: nvflare, environment: poc}"],
)
def test_a_run_of_real_sites_is_exported_where_nothing_else_is(tmp_path, monkeypatch, settings):
    pytest.importorskip("pppml_image_set", reason="the run's task is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"{REAL}engine: {settings}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "nvflare", "c.yaml", "-o", "job"])
    assert ended.value.code in (0, None)
    job = tmp_path / "job" / "pppml-xray"
    assert json.loads((job / "meta.json").read_text())["deploy_map"]["site"] == ["clinic_a", "clinic_b", "clinic_c"]
    config = resolve(job / "coordinator/config/pppml.yaml", registry=Registry.discover())
    assert (config.engine.environment, config.engine.homes, config.engine.kit) == ("job", None, None)
    assert dict(config.sites) == {"clinic_a": 412, "clinic_b": 230, "clinic_c": 305}
    assert "nowhere" not in (job / "coordinator/config/pppml.yaml").read_text()


def test_what_is_exported_is_a_job_to_nvflare(tmp_path):
    """By NVFlare's own checks of what is submitted, and its own readers of both sides."""
    pytest.importorskip("nvflare", reason="NVFlare is not installed here")
    from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
    from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

    experiment = Experiment(task={"use": "tiny", "sites": 2}, run={"name": "a.study"}, engine="nvflare")
    job = experiment.export(tmp_path / "out")
    valid, wrong, meta = JobMetaValidator().validate(job.name, zip_directory_to_bytes(str(job.parent), job.name))
    assert (valid, wrong) == (True, "")
    assert meta["name"] == job.name


def test_what_is_exported_is_conducted_inside_of_the_job(tmp_path):
    """The config of the job, as the coordinator's side of it runs it, over sites with homes of their own."""
    experiment = Experiment(task={"use": "tiny", "sites": 2}, run={"name": "a.study", "rounds": 1}, engine="nvflare")
    config = experiment.export(tmp_path / "out") / "coordinator" / "config" / "pppml.yaml"
    with pytest.raises(ConfigError, match="conducted by NVFlare's server"):
        Experiment(config).run(tmp_path / "outside", report=False, reporters=False)
    acquaint(tmp_path / "homes", ("site_1", "site_2", "server"))
    with conducting.inside(ResidentsTransport(tmp_path / "homes", ("site_1", "site_2")), {"server": tmp_path / "homes" / "server"}):
        done = Experiment(config).run(tmp_path / "inside", report=False, reporters=False)
    assert done.result["survivors"] == {"1": ["site_1", "site_2"]}

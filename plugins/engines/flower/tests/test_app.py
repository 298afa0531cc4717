"""What is exported, what the engine refuses, and how a node of a site is started."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import get_fab_config

from pppml_core import cli
from pppml_core.api import Experiment
from pppml_core.config import to_plain
from pppml_core.engines.parties import HOME, HOMES
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.testing.policies import insist
from pppml_flower.at_hand import using
from pppml_flower.config import FlowerConfig
from pppml_flower.gate import LOST
from pppml_flower.grid import GridPost
from pppml_flower.site import flower_environment, node_command, superlink_command
from pppml_flower.superlink import HTTPException, answers_only, guarded

CONFIG = {"task": {"use": "tiny", "sites": 2}, "run": {"rounds": 1, "name": "My_run"}}


def test_flower_takes_what_is_exported(tmp_path):
    experiment = Experiment({**CONFIG, "engine": {"use": "flower", "homes": str(tmp_path), "timeout": 60}})
    app = experiment.export(tmp_path / "app")
    config, warnings = load_and_validate(app / "pyproject.toml", check_module=True)
    assert not warnings
    assert config["project"]["name"] == "pppml-my-run"
    packed = build_fab_from_disk(app)
    assert get_fab_config(packed)["tool"]["flwr"]["app"]["components"]["clientapp"] == "pppml_flower.client:app"
    text = (app / "config.yaml").read_text()
    assert str(tmp_path) not in text  # the folder of homes is no part of the run
    again = Experiment(app / "config.yaml")
    assert again.config.engine.timeout == 60
    written, meant = (to_plain(one.config) for one in (again, experiment))
    assert all(written[section] == meant[section] for section in ("run", "task", "aggregator", "privacy", "personalization"))
    assert {path.suffix for path in app.iterdir()} <= {".toml", ".py", ".yaml", ".md"}
    with pytest.raises(ConfigError, match="empty"):
        experiment.export(tmp_path / "app")


@pytest.mark.parametrize("engine", ["flower", "local", {"use": "flower", "environment": "processes", "homes": "/nowhere"}])
def test_a_run_of_real_sites_is_exported_where_nothing_else_is(tmp_path, monkeypatch, engine):
    pytest.importorskip("pppml_image_set", reason="the run's task is not installed")
    monkeypatch.chdir(tmp_path)
    task = {"use": "image-set", "kind": "classification", "channels": 1, "size": [64, 64], "classes": ["normal", "pneumonia"]}
    sites = {"clinic_a": 412, "clinic_b": 230, "clinic_c": 305}
    study = {"task": task, "sites": sites, "run": {"name": "xray", "metrics": "sum"}, "model": "tiny-net", "engine": engine}
    (tmp_path / "c.yaml").write_text(json.dumps(study))
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "flower", "c.yaml", "-o", "app"])
    assert ended.value.code in (0, None)
    load_and_validate(tmp_path / "app" / "pyproject.toml", check_module=True)
    config = Experiment(tmp_path / "app" / "config.yaml").config
    assert dict(config.sites) == sites
    assert (config.engine.environment, config.engine.homes) == ("federation", None)


def test_what_is_exported_is_conducted_as_an_app(homes, grid_of, tmp_path, monkeypatch):
    """Loaded as Flower loads it, and run over a grid with the home that the SuperLink was started with."""
    from flwr.app import Context, RecordDict
    from flwr.serverapp import ServerApp
    from flwr.supercore.object_ref import load_app

    there = homes(("site_1", "site_2"))
    app = Experiment({**CONFIG, "engine": {"use": "flower", "poll": 0.01}}).export(tmp_path / "app")
    loaded = load_app("pppml_app:app", ValueError, app)
    assert isinstance(loaded, ServerApp)
    monkeypatch.setenv(HOME, str(there["server"]))
    monkeypatch.delenv(HOMES, raising=False)
    out = tmp_path / "run"
    loaded(grid_of(there), Context(1, 0, {}, RecordDict(), {"out": str(out), "homes": ""}, 0))
    assert json.loads((out / "result.json").read_text())["survivors"] == {"1": ["site_1", "site_2"]}


def test_without_a_grid_it_says_how_to_start(tmp_path):
    with pytest.raises(ConfigError) as failed:
        Experiment({**CONFIG, "engine": "flower"}).run(tmp_path / "run", report=False, reporters=False)
    assert "pppml export flower" in str(failed.value)
    assert "flwr run" in str(failed.value)


def test_a_site_that_refuses_is_named_with_its_rule(homes, grid_of, tmp_path):
    there = homes(("site_1", "site_2"))
    insist(there["site_2"], "plain_updates: false")
    flower = {"use": "flower", "homes": str(there["server"].parent), "poll": 0.01}
    with using(GridPost(grid_of(there))), pytest.raises(RunFailed, match="site_2: it refused: plain_updates"):
        Experiment({**CONFIG, "engine": flower}).run(tmp_path / "run", report=False, reporters=False)


def test_a_missing_node_is_named(homes, grid_of, tmp_path):
    there = homes(("site_1", "site_2"))
    grid = grid_of(there)
    grid.online.discard(102)
    flower = {"use": "flower", "homes": str(there["server"].parent), "poll": 0.01, "wait": 0.05}
    with using(GridPost(grid)), pytest.raises(RunFailed, match="no node has shown to be site_2"):
        Experiment({**CONFIG, "engine": flower}).run(tmp_path / "run", report=False, reporters=False)


def test_sites_that_nobody_pinned_are_named(homes, grid_of, tmp_path):
    there = homes(("site_1",))
    flower = {"use": "flower", "homes": str(there["server"].parent)}
    with using(GridPost(grid_of(there))), pytest.raises(ConfigError, match="no identity is pinned for site_2"):
        Experiment({**CONFIG, "engine": flower}).run(tmp_path / "run", report=False, reporters=False)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({}, "engine.superlink"),
        ({"superlink": "h:1"}, "engine.auth_key"),
        ({"superlink": "h:1", "auth_key": "nowhere"}, "engine.auth_key"),
        ({"superlink": "h:1", "auth_key": "key", "root_certificates": "nowhere"}, "engine.root_certificates"),
        ({"superlink": "h:1", "auth_key": "key", "insecure": True}, "engine.insecure"),
    ],
)
def test_a_node_without_tls_and_key_must_be_asked_for(settings, place, tmp_path):
    (tmp_path / "key").write_text("")
    with pytest.raises(ConfigError) as refused:
        node_command(tmp_path, FlowerConfig(**settings))
    assert refused.value.place == place


@pytest.mark.parametrize("missing", ["certificate", "certificate_key", "root_certificates"])
def test_a_superlink_without_tls_must_be_asked_for(missing, tmp_path):
    files = {name: name for name in ("certificate", "certificate_key", "root_certificates")}
    for name in files:
        (tmp_path / name).write_text("")
    whole = superlink_command(tmp_path, FlowerConfig(superlink="h:1", **files))
    assert "--enable-supernode-auth" in whole
    assert "--disable-runtime-dependency-installation" in whole
    assert whole[1] == "-P", "nothing in the folder where it is started is taken for a module"
    with pytest.raises(ConfigError) as refused:
        superlink_command(tmp_path, FlowerConfig(superlink="h:1", **{**files, missing: None}))
    assert refused.value.place == f"engine.{missing}"
    assert "--insecure" in superlink_command(tmp_path, FlowerConfig(superlink="h:1", insecure=True))


def test_what_a_node_is_started_with(tmp_path):
    (tmp_path / "key").write_text("")
    safe = node_command(tmp_path, FlowerConfig(superlink="h:1", auth_key="key"))
    assert safe[safe.index("--auth-supernode-private-key") + 1] == str(tmp_path / "key")
    assert "--insecure" not in safe
    assert safe[1] == "-P", "nothing in the folder where it is started is taken for a module"
    assert "--insecure" in node_command(tmp_path, FlowerConfig(superlink="h:1", insecure=True))
    environment = flower_environment(tmp_path)
    assert environment["FLWR_HOME"].startswith(str(tmp_path))
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


@pytest.mark.parametrize("command", ["flwr-agentapp", "flwr-serverapp", "flwr-anything"])
def test_a_site_starts_no_app_but_its_own_handler(command, tmp_path):
    """Though such a command is at hand: that of agents could do anything."""
    (tmp_path / command).write_text("#!/bin/sh\necho it ran\n")
    (tmp_path / command).chmod(0o700)
    line = "import multiprocessing, sys; from pppml_flower import executor; executor._start(multiprocessing, [sys.argv[1]]); print('on')"
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", line, command], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{command} was refused" in done.stderr


def test_the_executor_is_ours_whatever_lies_on_the_path_or_in_the_folder(tmp_path):
    """Found by its name it would be Flower's, which runs what the SuperLink sends."""
    (tmp_path / "flower-superexec").write_text("#!/bin/sh\necho it ran\n")
    (tmp_path / "flower-superexec").chmod(0o700)
    (tmp_path / "pppml_flower.py").write_text("print('it ran')")
    line = """
import signal, time
from flwr.supernode import start_client_internal as loop
from pppml_flower import gate
signal.signal(signal.SIGTERM, signal.SIG_IGN)
gate._GRACE = 0
gate._with_an_executor_of_ours()
loop.subprocess.Popen(["flower-superexec", "--help"])
time.sleep(60)
"""
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-P", "-c", line]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=120)
    assert "it ran" not in done.stdout + done.stderr
    assert "usage:" in done.stdout
    assert done.returncode == LOST


def test_a_message_runs_the_handler_that_is_installed_here():
    """Whatever app Flower names, in a process of its own as at a site; nothing is unpacked or installed for it."""
    probe = """
import sys
from unittest import mock
import flwr.supernode.cli, flwr.supernode.runtime.run_clientapp as runtime
from pppml_flower import executor
with mock.patch.object(flwr.supernode.cli, "flwr_clientapp") as start:
    executor.client_app(["flwr-clientapp"], mock.Mock())
assert start.called
load = runtime.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
from pppml_flower.client import app
assert load("evil/app", "1.0.0", "00") is app
assert runtime.install_from_fab(b"not even a zip", skip_prompt=True) is None
try:
    runtime.install_app_dependencies("x")
except RuntimeError:
    pass
else:
    sys.exit("installed")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_another_flwr_is_not_trusted(monkeypatch):
    import flwr.supernode.runtime.run_clientapp as runtime

    from pppml_flower import executor

    monkeypatch.delattr(runtime, "install_from_fab")
    with pytest.raises(SystemExit, match="keep it in bounds"):
        executor.look()


def test_the_readme_of_the_app_says_how_to_start(tmp_path):
    app = Experiment({**CONFIG, "engine": "flower"}).export(tmp_path / "app")
    assert "flwr run" in (Path(app) / "README.md").read_text()


@pytest.mark.parametrize(
    ("client", "path", "answered"),
    [
        ("127.0.0.1", "/v1/control/start-run", True),
        ("::1", "/v1/control/start-run", True),
        ("::ffff:127.0.0.1", "/v1/runtime/x", True),
        ("10.0.0.7", "/v1/fleet/pull-messages", True),
        ("10.0.0.7", "/v1/control/start-run", False),
        ("10.0.0.7", "/v1/runtime/acquire-task", False),
        ("10.0.0.7", "/v1/fleet", False),
        ("10.0.0.7", "/docs", False),
        ("::ffff:10.0.0.7", "/v1/control/start-run", False),
        ("somewhere", "/v1/control/start-run", False),
        (None, "/v1/control/start-run", False),
    ],
)
def test_only_nodes_call_a_superlink_from_elsewhere(client, path, answered):
    """Whoever may start a run has code of theirs executed beside the coordinator's keys."""
    told: list[object] = []

    async def app(scope, receive, send):
        told.append("answered")

    async def send(event):
        told.append(event.get("status"))

    scope = {"type": "http", "path": path, "client": None if client is None else (client, 5)}
    asyncio.run(guarded(app)(scope, None, send))
    assert told == (["answered"] if answered else [403, None])


@pytest.mark.parametrize(("source", "reply_to", "taken"), [(7, "letter-1", True), (8, "letter-1", False), (1, "", False), (7, "", False)])
def test_a_node_hands_in_its_own_answers_and_nothing_else(source, reply_to, taken):
    """Flower looks who calls, but not in whose name; what is addressed to the coordinator it hands out with every answer."""
    metadata = [
        SimpleNamespace(src_node_id=7, reply_to_message_id="letter-0"),
        SimpleNamespace(src_node_id=source, reply_to_message_id=reply_to),
    ]
    request = SimpleNamespace(node=SimpleNamespace(node_id=7), messages_list=[SimpleNamespace(metadata=each) for each in metadata])
    guard = answers_only(lambda request, state: ("stored", request, state))
    if taken:
        assert guard(request=request, state="state") == ("stored", request, "state")
    else:
        with pytest.raises(HTTPException) as refused:
            guard(request=request, state="state")
        assert refused.value.status_code == 400


def test_the_superlink_of_this_flwr_is_guarded():
    """The names that are replaced are those that Flower's command calls."""
    probe = """
import sys
from unittest import mock
import flwr.superlink.cli as cli, flwr.superlink.main as served
from pppml_flower import superlink
served.create_app = lambda *given, **settings: "bare"
with mock.patch.object(cli, "flower_superlink") as start, mock.patch.object(superlink, "end_with_starter"):
    superlink.main()
assert start.called
command = sys.modules["flwr.superlink.cli.flower_superlink"]
with mock.patch("uvicorn.run") as run:
    command._run_superlink_http_api(mock.Mock())
app = run.call_args.kwargs["app"]
assert app.__qualname__.startswith("guarded"), app
import flwr.superlink.routers.fleet.router
from pppml_flower.superlink import HTTPException
request = mock.Mock(messages_list=[mock.Mock()])
try:
    sys.modules["flwr.superlink.routers.fleet.router"].fleet_push_messages(request, mock.Mock())
except HTTPException as error:
    assert error.status_code == 400
else:
    sys.exit("it was taken")
"""
    subprocess.run([sys.executable, "-c", probe], check=True)

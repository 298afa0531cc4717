"""``pppml run``, ``plan`` and ``data`` as a shell sees them: exit codes, texts, and a process that is killed with ``kill -9``."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pppml_core import cli
from pppml_core.api import Experiment
from pppml_core.registry import Registry

TINY = "task: {use: tiny, sites: 3, examples: 12}\nrun: {rounds: 3, seed: 4}\n"


@pytest.fixture
def pppml(tmp_path, monkeypatch, capsys):
    """A command in this process, in an empty folder that holds ``c.yaml``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPPML_PLUGINS", "pppml-core")
    (tmp_path / "c.yaml").write_text(TINY)

    def go(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        text = capsys.readouterr()
        return int(ended.value.code or 0), text.out, text.err

    return go


def result(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def test_run(pppml, tmp_path):
    code, out, err = pppml("run", "c.yaml", "--out", "runs/a", "--set", "run.rounds=1", "--seed", "9")
    assert (code, err) == (0, "")
    assert "runs/a/report.html" in out
    assert (result("runs/a")["rounds"], result("runs/a")["seed"]) == (1, 9)
    assert (tmp_path / "runs/a/report.html").stat().st_size > 1000

    code, _, err = pppml("run", "c.yaml", "--out", "runs/a")
    assert code == 2
    assert err.startswith("error: runs/a: this folder already holds a run")
    assert "--resume runs/a" in err

    before = (tmp_path / "runs/a/result.json").stat().st_mtime_ns
    assert pppml("run", "--resume", "runs/a")[0] == 0
    assert (tmp_path / "runs/a/result.json").stat().st_mtime_ns == before

    code, _, err = pppml("run", "c.yaml", "--resume", "runs/a")
    assert code == 2
    assert "run.rounds: 1 -> 3" in err


def test_the_default_folder_has_the_runs_name(pppml):
    assert pppml("run", "c.yaml", "--set", "run.name=mine", "--set", "run.rounds=1")[0] == 0
    assert result("runs/mine")["name"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("run",), 2, "Give a CONFIG"),
        (("run", "c.yaml", "--out", "a", "--resume", "b"), 2, "not both"),
        (("run", "--resume", "nowhere"), 2, "no run here"),
        (("run", "missing.yaml"), 2, "missing.yaml"),
        (("run", "c.yaml", "--set", "run.rounds=-1"), 2, "run.rounds"),
        (("run", "c.yaml", "--set", "run.cohort=9", "--set", "run.min_cohort=4"), 2, "2 reasons"),
        (("run", "c.yaml", "--set", "aggregator=secagg-plus"), 3, "secagg-plus"),
        (("run", "c.yaml", "--out", "c.yaml/x"), 1, "cannot write here"),
        (("plan", "c.yaml", "--set", "run.cohort=9"), 2, "run.cohort: 9"),
        (("data", "missing.yaml"), 2, "missing.yaml"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else None,
)
def test_exit_codes(pppml, tmp_path, arguments, code, text):
    got, _, err = pppml(*arguments)
    assert got == code
    assert text in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("result.json"))


def test_a_run_without_a_sum_has_exit_code_1(pppml):
    faults = "engine={use: local, faults: [{site: site_1, do: drop, times: 99}]}"
    code, _, err = pppml("run", "c.yaml", "--out", "a", "--set", faults, "--set", "run.min_cohort=3")
    assert code == 1
    assert "round 1" in err
    assert "--resume a" in err


def test_plan(pppml):
    code, out, err = pppml("plan", "c.yaml")
    assert (code, err) == (0, "")
    for text in ("The server sees every update", "decode and update", "bytes per site and round", "largest curious coalition"):
        assert text in out
    code, out, _ = pppml("plan", "c.yaml", "--json", "--set", "encoding.bits=12")
    assert code == 0
    assert json.loads(out)["misfits"] == []
    code, out, _ = pppml("plan", "c.yaml", "--json", "--measure")
    assert json.loads(out)["measured"]["one batch"] > 0
    code, out, err = pppml(
        "plan", "c.yaml", "--json", "--set", "run.cohort=9", "--set", "run.min_cohort=5", "--set", "run.stop.metric=dice"
    )
    assert code == 2
    assert len(json.loads(out)["misfits"]) == 3
    assert err.count("|") == 2


def test_data(pppml, tmp_path):
    code, out, err = pppml("data", "c.yaml", "-o", "sheet.png")
    assert (code, err) == (0, "")
    assert "Tiny squares" in out
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = pppml("data", "c.yaml", "--json")
    assert json.loads(out)["title"] == "Tiny squares"


# -- kill -9 ------------------------------------------------------------------------------------------------------------------


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """``pppml run`` in a process of its own."""
    environment = {**os.environ, "PPPML_PLUGINS": "pppml-core", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pppml_core.cli", "run", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    """Until the file is there."""
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_process_killed_at_any_moment_goes_on_to_the_same_model(tmp_path):
    text = "task: {use: tiny, examples: 200}\nmodel: {use: tiny-net, norm: batch}\nrun: {rounds: 12, seed: 4, select: best-validation}\n"
    (tmp_path / "c.yaml").write_text(text)
    folder = tmp_path / "r"
    moments = random.Random(os.getpid())

    process = start(tmp_path, "c.yaml", "--out", "r")
    wait_for(process, folder / "config.resolved.yaml")
    time.sleep(moments.uniform(0, 0.2))
    kill(process)

    process = start(tmp_path, "--resume", "r")
    wait_for(process, folder / "checkpoints" / "round-000006.checkpoint")
    time.sleep(moments.uniform(0, 0.1))
    kill(process)
    assert not (folder / "result.json").exists()

    process = start(tmp_path, "--resume", "r")
    error = process.communicate(timeout=120)[1]
    assert (process.returncode, error) == (0, b"")

    whole = Experiment(tmp_path / "c.yaml", registry=Registry.only()).run(tmp_path / "whole", reporters=False, report=False)
    assert result(folder)["model_sha256"] == whole.result["model_sha256"]
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(whole.metrics)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["round"] for e in events if e["event"] == "round-finished"] == list(range(1, 13))

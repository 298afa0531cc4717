"""``pppml sweep`` and ``pppml predict`` as thin layers over the API."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import pppml_core
from pppml_core.cli.predict import command as predict
from pppml_core.cli.sweep import command as sweep
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.sweep_result import SweepResult


@pytest.fixture
def api(monkeypatch):
    """A stand-in that records what it is asked for."""
    module = types.ModuleType("pppml_core.api")
    module.asked, module.points = {}, {"seed=1": {"settings": {}, "seed": 1, "status": "missing"}}

    def load(path, overrides=()):
        return ("experiment", path, overrides)

    def run_sweep(experiment, grid, *, seeds, budget, out):
        module.asked = {"experiment": experiment, "grid": grid, "seeds": seeds, "budget": budget, "out": out}
        return SweepResult(Path(out), module.points)

    def open_run(path):
        def run(source, **options):
            module.asked = {"run": path, "source": source, **options}
            return SimpleNamespace(files=(Path("o/a_mask.png"),))

        return SimpleNamespace(predict=run)

    module.load, module.sweep, module.open = load, run_sweep, open_run
    monkeypatch.setitem(sys.modules, "pppml_core.api", module)
    monkeypatch.setattr(pppml_core, "api", module, raising=False)
    return module


def test_sweep_hands_everything_on(api):
    options = ["c.yaml", "--grid", "personalization=fedavg,local-only", "--grid", "training.optimizer.lr=0.1,1e-2"]
    done = CliRunner().invoke(sweep, [*options, "--seeds", "1..2", "--budget", "5", "--set", "run.rounds=2"], catch_exceptions=False)
    assert done.exit_code == 0
    assert api.asked == {
        "experiment": ("experiment", Path("c.yaml"), ["run.rounds=2"]),
        "grid": {"personalization": ["fedavg", "local-only"], "training.optimizer.lr": [0.1, 0.01]},
        "seeds": [1, 2],
        "budget": 5.0,
        "out": Path("sweeps/c"),
    }
    assert "table.md" in done.output


def test_sweep_with_failures_ends_with_their_exit_code(api):
    api.points = {"seed=1": {"settings": {}, "seed": 1, "status": "failed", "error": "no", "exit_code": 2}}
    with pytest.raises(RunFailed, match="1 of 1 runs failed") as caught:
        CliRunner().invoke(sweep, ["c.yaml"], catch_exceptions=False)
    assert caught.value.exit_code == 2
    assert RunFailed.exit_code == 1


@pytest.mark.parametrize("options", [["--grid", "a"], ["--seeds", "x"]])
def test_sweep_refuses_what_it_cannot_read(api, options):
    with pytest.raises(ConfigError):
        CliRunner().invoke(sweep, ["c.yaml", *options], catch_exceptions=False)
    assert api.asked == {}


def test_predict_hands_everything_on(api):
    done = CliRunner().invoke(
        predict, ["runs/a", "--input", "x.nii.gz", "--site", "a", "--probabilities", "-o", "o"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert api.asked == {"run": Path("runs/a"), "source": Path("x.nii.gz"), "site": "a", "out": Path("o"), "probabilities": True}
    assert done.output == "o/a_mask.png\n"


def test_predict_needs_input_and_output(api):
    assert CliRunner().invoke(predict, ["runs/a", "-o", "o"]).exit_code == 2
    assert CliRunner().invoke(predict, ["runs/a", "--input", "x"]).exit_code == 2

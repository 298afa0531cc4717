"""A disk that is full, at several moments and for real: exit code 1, the place, a hint, and a run that goes on to the same model."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from pppml_core.errors import RunFailed
from pppml_core.federation import rundir

MOMENTS = [("replace", 1), ("replace", 3), ("replace", 5), ("replace", 14), ("replace", 31), ("fsync", 20), ("write", 1), ("write", 23)]


def full(path):
    return OSError(errno.ENOSPC, "No space left on device", str(path))


def failing(call, count):
    """``call``, but the n-th time and ever after the disk is full."""
    left = [count]

    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] <= 0:
            raise full("/somewhere/a-file")
        return call(*args, **kwargs)

    return wrapped


@pytest.fixture(scope="module")
def sha(go):
    return go(run={"rounds": 3}).result["model_sha256"]


@pytest.mark.parametrize(("name", "count"), MOMENTS)
def test_full_at_a_moment(experiment, sha, tmp_path, monkeypatch, name, count):
    made = experiment(run={"rounds": 3}, reporters=["jsonl"])
    with monkeypatch.context() as patched:
        patched.setattr(os, name, failing(getattr(os, name), count))
        with pytest.raises(RunFailed) as caught:
            made.run(tmp_path / "r", report=False)
    assert caught.value.exit_code == 1
    assert caught.value.place
    assert "resume" in caught.value.hint
    assert "space" in str(caught.value).lower()
    assert made.run(tmp_path / "r", report=False).result["model_sha256"] == sha


def test_full_while_metrics_are_written(experiment, sha, tmp_path, monkeypatch):
    made = experiment(run={"rounds": 3}, reporters=["jsonl"])
    with monkeypatch.context() as patched:
        patched.setattr(rundir, "open", failing(open, 3), raising=False)
        with pytest.raises(RunFailed, match="no space"):
            made.run(tmp_path / "r", report=False)
    run = made.run(tmp_path / "r", report=False)
    assert run.result["model_sha256"] == sha
    keys = [(r["round"], r["site"], r["split"], r["weights"]) for r in run.metrics]
    assert len(keys) == len(set(keys)) == 3 * 3 + 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, and a function that gives it more."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root on Linux may mount a small file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    yield place, lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    subprocess.run(["umount", str(place)], check=True)


LARGE = {"model": {"use": "tiny-net", "width": 64}, "run": {"rounds": 4, "transcript": "payloads"}}


def test_a_disk_that_is_really_full(experiment, go, small_disk):
    place, enlarge = small_disk
    made = experiment(**LARGE, reporters=["jsonl"])
    for _ in range(2):  # the second time it is still full
        with pytest.raises(RunFailed) as caught:
            made.run(place / "r", report=False)
        assert "o space" in str(caught.value)
        assert caught.value.place
        assert caught.value.hint
    rounds = [int(p.stem.removeprefix("round-")) for p in (place / "r" / "checkpoints").glob("round-*.checkpoint")]
    assert max(rounds, default=0) < 4
    enlarge()
    run = made.run(place / "r", report=False)
    assert run.result["model_sha256"] == go(**LARGE).result["model_sha256"]


def test_a_disk_that_is_full_for_a_worker_process(experiment, small_disk):
    place, _ = small_disk
    made = experiment(**{**LARGE, "model": {"use": "tiny-net", "width": 100}}, engine={"use": "local", "workers": 2}, reporters=[])
    with pytest.raises(RunFailed, match="o space") as caught:
        made.run(place / "r", report=False)
    assert caught.value.place
    assert caught.value.hint

"""The attacks at the end of the demo, on the tiny task: records beside the arms, a paragraph each, and nothing is made twice."""

import json
import sys
from pathlib import Path

import pytest

from pppml_core.registry import Registry

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"


def test_the_slice(tmp_path, monkeypatch):
    if "gallery" not in {row.name for row in Registry.discover().rows() if row.status == "ok"}:
        pytest.skip("not installed: gallery")
    monkeypatch.syspath_prepend(DEMO)
    monkeypatch.delitem(sys.modules, "attacks", raising=False)
    import attacks

    small = {"vantage": "server", "victims": 2, "gallery": 5}
    monkeypatch.setattr(attacks, "GALLERY", {"use": "gallery", "recorded": True, **small})
    monkeypatch.setattr(attacks, "IDLG", {"use": "gallery", "round": 1, **small})
    monkeypatch.setattr(attacks, "STEP", {"task": "tiny", "run": {"rounds": 1}})
    (tmp_path / "tiny.yaml").write_text("task: tiny\nrun: {rounds: 3, seed: 1}\n")
    (tmp_path / "arm").mkdir()
    made = attacks.attacked(tmp_path / "tiny.yaml", {"arm": []}, tmp_path)
    assert [folder.name for folder in made] == ["arm-one-round", "one-image-step"]
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "arm" / "attacks").iterdir())
    assert not record["staged"]
    assert "companion run of one round" in record["about"]
    text = attacks.told(made)
    assert text.count("the server, which decodes this site's own update") == 2
    assert "Recorded: round 1" in text
    assert "Staged: one training step on one image" in text

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/attacks/*.json") if path.parts[-3] != "arm"}
    assert attacks.attacked(tmp_path / "tiny.yaml", {"arm": []}, tmp_path) == made
    assert times == {path: path.stat().st_mtime_ns for path in times}
    del sys.modules["attacks"]

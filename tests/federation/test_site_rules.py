"""Small rules that a site's safety rests on: what names a place, how fast one may ask, what stands for code that is run."""

from __future__ import annotations

import importlib.util
import marshal
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pppml_core.errors import PluginError, PolicyRefusal
from pppml_core.federation.code import code_hash
from pppml_core.federation.pace import Pace
from pppml_core.federation.places import names_a_place
from pppml_core.federation.reason import here_only, reason_of
from pppml_core.testing.desk import Desk

PLAIN = {"task": "tiny", "aggregator": "plain", "training": {"steps": 1}, "run": {"rounds": 1, "metrics": "none", "seed": 5}}


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd", "~/x", "~", "../x", "./x", "x/../../y", "runs/../../../srv/other/model.safetensors", "sub/model.safetensors", "..",
        "file:///etc/passwd", "s3://bucket/x", "C:\\x", "c:/x", "\\\\srv\\share", "\\x", "a\\..\\b", "sub\\m.pt",
    ],
)  # fmt: skip
def test_a_place(text: str) -> None:
    assert names_a_place(text)


@pytest.mark.parametrize("text", ["tiny-net", "pppml_core.builtin.tiny:TinyNet", "n/a", "benign/malignant", "model.safetensors", "", "0.5"])
def test_no_place(text: str) -> None:
    assert not names_a_place(text)


def test_a_party_may_ask_so_often() -> None:
    pace = Pace(burst=3, a_second=2.0)
    assert [pace.allows("a", 10.0) for _ in range(4)] == [True, True, True, False]
    assert pace.allows("b", 10.0), "each has its own"
    assert [pace.allows("a", 11.0) for _ in range(3)] == [True, True, False]
    assert [pace.allows("a", 1000.0) for _ in range(4)] == [True, True, True, False], "no more than at the beginning"


def test_a_coordinator_that_asks_too_often_fills_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, PLAIN, "plain_updates: true")
    monkeypatch.setattr(desk.residents["site_1"], "_pace", Pace(burst=5, a_second=0.0))
    replies = [desk.ask("site_1", "hello", "hello", {}, 0) for _ in range(40)]
    assert [reply.kind for reply in replies] == ["failed"] * 5 + ["refused"] * 35
    assert "asked too often" in replies[-1].body["reason"]
    assert [line["kind"] for line in desk.logged("site_1")] == ["failed"] * 5 + ["turned-away"]


def test_numbers_that_a_rule_protects_stay_at_the_site(caplog: pytest.LogCaptureFixture) -> None:
    error = PolicyRefusal(f"fewest_patients: {here_only('fewer than 10', '3 patients')}", hint="ask")
    assert reason_of(error) == {"reason": "fewest_patients: fewer than 10 (ask)"}
    assert "3 patients" in caplog.text
    assert "3 patients" in reason_of(error, simulated=True)["reason"]


def test_folders_of_runs_are_their_owners_alone(tmp_path: Path) -> None:
    desk = Desk(tmp_path, PLAIN, "plain_updates: true")
    desk.invite("site_1")
    desk.open("site_1")
    desk.ask("site_1", "session", "contribute", {})
    home = desk.homes / "site_1"
    folders = [home, *(path for path in (home / "runs").rglob("*") if path.is_dir()), home / "runs"]
    assert len(folders) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "a_package_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("def update(x): return x * 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code_hash.cache_clear()
    yield folder
    code_hash.cache_clear()


@pytest.mark.parametrize(("flags", "hidden"), [(0b00, False), (0b01, True), (0b11, False)])
def test_a_cache_that_python_prefers_to_the_source(package: Path, flags: int, hidden: bool) -> None:
    before = code_hash(package.name)
    cache = Path(importlib.util.cache_from_source(str(package / "__init__.py")))
    cache.parent.mkdir(exist_ok=True)
    code = marshal.dumps(compile("def update(x): return x", "x", "exec"))
    cache.write_bytes(importlib.util.MAGIC_NUMBER + struct.pack("<I", flags) + bytes(8) + code)
    code_hash.cache_clear()
    if hidden:
        with pytest.raises(PluginError, match="never compared with its source"):
            code_hash(package.name)
    else:
        assert code_hash(package.name) == before


def test_a_link_in_a_package(package: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (package / "sub").symlink_to(elsewhere)
    with pytest.raises(PluginError, match="sub is a link"):
        code_hash(package.name)

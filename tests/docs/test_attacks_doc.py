"""docs/attacks.md and the README's part about attacks: what they print is carried out, what they state is compared with the code."""

import json
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from click import Context

from pppml_core import cli
from pppml_core.config import resolve
from pppml_core.evidence import deciding, scoring
from pppml_core.evidence.attacks import RECORDED
from pppml_core.evidence.vantage import read_vantage
from pppml_core.interfaces.attack import Answer, Outcome, Vantage
from pppml_core.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
WORDS = " ".join(TEXT.split())
README = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Who could learn what\n")[1].split("\n## ")[0]


def table(first):
    """The rows of the table whose first column is called so, as lists of cells."""
    lines = TEXT[TEXT.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def codes(cell):
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture
def folder(tmp_path, monkeypatch, blocks):
    """With the page's files; modules are found in it."""
    for text in [*blocks(TEXT, "python"), *blocks(TEXT, "yaml")]:
        name = text.partition("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("last_bias", "plugin"):
        sys.modules.pop(name, None)


def test_the_attack_of_the_page(folder, lines, pppml):
    """Its commands; the attack of its config; and the plugin's hook."""
    if "gallery" not in {row.name for row in Registry.discover().rows() if row.status == "ok"}:
        pytest.skip("not installed: gallery")
    commands = [line for line in lines(TEXT) if re.match("pppml (run|attack)", line)]
    assert [line.split()[1] for line in commands] == ["run", "attack"]
    _, shown = pppml(folder, *commands)
    assert "recovered" in shown
    named = re.search(r"Labels named: (\d+) of (\d+)", shown)
    assert named, shown
    assert named[1] == named[2], "every diagnosis, as the text says; a patient counts once"
    made = {path.name: json.loads(path.read_text()) for path in (folder / "runs" / "a" / "attacks").glob("*.json")}
    assert {(record["attack"], record["vantage"]) for record in made.values()} == {
        ("last_bias:LastBias", "server"),
        ("gallery", "server+site:site_2"),
    }
    assert all(record["staged"] and record["round"] == 1 for record in made.values())

    import plugin

    from pppml_core.testing import PluginSuite

    (component,) = plugin.pppml_attacks()
    assert component.target == "last_bias:LastBias"
    held = type("Held", (PluginSuite,), {"plugin": "plugin"})()
    assert [(kind, found.name) for kind, found in held.components()] == [("attack", "last-bias")]


def test_vantages():
    sites = ["a", "b", "c"]
    seen = [read_vantage(text, sites) for row in table("vantage") for text in codes(row[0])]
    assert len(seen) == 6
    assert {name for one in seen for name in ("server", "sites", "neighbours", "links", "public") if getattr(one, name)} == {
        name for name in Vantage.__dataclass_fields__ if name != "text"
    }


def test_answers_and_outcomes():
    assert {answer for row in table("answer") for answer in codes(row[0])} == set(get_args(Answer))
    assert {codes(row[0])[0] for row in table("outcome")} == set(get_args(Outcome))


def test_the_attacks_that_are_listed_are_those_of_this_repository():
    registry = Registry.discover()
    own = {"pppml-core"} | {f"pppml-{path.name.replace('_', '-')}" for path in (ROOT / "plugins" / "attacks").iterdir()}
    here = {row.name for row in registry.rows() if row.kind == "attack" and row.distribution in own and row.status == "ok"}
    listed = {name: row for row in table("name") for name in codes(row[0])}
    if missing := set(listed) - here:
        pytest.skip(f"not installed: {missing}")
    assert set(listed) == here
    for name, row in listed.items():
        attack = registry.build("attack", resolve({"task": "tiny", "attacks": [name]}, registry=registry).attacks[0])
        if not attack.reads_view:
            assert row in table("name")[-3:], name
        elif attack.answers in RECORDED:
            assert "recorded" in row[2], name
        else:
            assert row[3] == ("100" if attack.cheap else "3"), name


def test_numbers():
    assert deciding.decide.__defaults__ == (0.01,)
    assert "one-sided, at 1 %" in WORDS
    assert scoring.REDRAWN_MSE == 0.01
    assert scoring.REDRAWN_SHARE == 0.5
    assert "mean squared error below 0.01" in WORDS
    assert "at most half that of the best blind guess" in WORDS
    assert scoring.DECODED_ERROR == 0.01
    assert scoring.DECODED_SHARE == 0.1
    assert "relative error at most 1 %" in WORDS
    assert "at most a tenth" in WORDS
    assert f"{deciding.clopper_pearson(0, 10, 0.90).high:.0%}" == "26%"
    assert "with 10 victims and no success, 26 %" in WORDS


def test_options_that_are_named_exist(lines):
    known = {name for command in ("attack", "evidence", "new-plugin") for name in _options(command)}
    named = set(re.findall(r"(?<![\w-])(--[a-z]+)", TEXT + README)) - {"--out"}
    assert {"--recorded", "--site", "--victims", "--budget"} <= named
    assert named <= known, named - known


def _options(command):
    found = cli.main.get_command(Context(cli.main), command)
    return [name for option in found.params for name in (*option.opts, *option.secondary_opts)]


def test_the_section_of_the_readme(lines, pppml, tmp_path):
    """On a small segmentation with two victims; the rest as printed."""
    ok = {row.name for row in Registry.discover().rows() if row.status == "ok"}
    if missing := {"gallery", "lesion-area"} - ok:
        pytest.skip(f"not installed: {missing}")
    (tmp_path / "config.yaml").write_text("task: {use: tiny, kind: segmentation}\nrun: {rounds: 2}\n")
    commands = lines(README)
    assert [line.split()[1] for line in commands] == ["attack", "attack", "report"]
    smaller = [line.replace("scanner_2", "site_2") + (" --victims 2 --gallery 5" if " attack " in line else "") for line in commands]
    pppml(tmp_path, "pppml run config.yaml --out runs/a", *smaller)
    made = {json.loads(path.read_text())["attack"] for path in (tmp_path / "runs" / "a" / "attacks").glob("*.json")}
    assert made == {"gallery", "lesion-area"}
    assert "best guess" in (tmp_path / "report.html").read_text()

"""docs/write-a-plugin.md, executed: its files are written, built, installed, tested and run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: (the part about learning rules: test_learning_rule_doc.py)
TEXT = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8").split("\n## Another kind: a learning rule")[0]
#: Blocks whose first line is a comment with a file name are files.
FILE = re.compile(r"^(?:# |<!-- )([\w./-]+\.\w+)(?: -->)?$")
EMPTY = "src/pppml_twice_checked/__init__.py"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


def written(folder):
    """The plugin's files below `folder/twice_checked`, the configs in `folder`; their names."""
    names = []
    for text in (block for language in ("toml", "python", "markdown", "yaml") for block in blocks(language)):
        first, _, rest = text.partition("\n")
        name = FILE.match(first)[1]
        path = folder / name if name.endswith(".yaml") else folder / "twice_checked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rest if name.endswith(".md") else text, encoding="utf-8")
        names.append(name)
    (folder / "twice_checked" / EMPTY).touch()
    return names


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the plugin and the configs; the plugin is installed into a folder of its own, as pip does it, without a network."""
    folder = tmp_path_factory.mktemp("tutorial")
    names = written(folder)
    target = folder / "installed"
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(folder / "twice_checked")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder, names, target


#: Several commands in one process: torch is loaded once.
COMMANDS = """
import shlex, sys
from pppml_core.cli import main
for line in sys.argv[1:]:
    print(f"$ {line}", flush=True)
    main(shlex.split(line)[1:], standalone_mode=False)
"""


def call(built, *arguments):
    folder, _, target = built
    environment = {k: v for k, v in os.environ.items() if k != "PPPML_PLUGINS"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(target), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def pppml(built, *commands):
    """What each command of the tutorial prints."""
    known = [line for block in blocks("sh") for line in block.splitlines()]
    assert [c for c in commands if c not in known] == [], "not in the tutorial"
    return re.split(r"^\$ .*\n", call(built, "-c", COMMANDS, *commands), flags=re.MULTILINE)[1:]


def result(built, name):
    return json.loads((built[0] / "runs" / name / "result.json").read_text())


def lines(built, name, file):
    return [json.loads(line) for line in (built[0] / "runs" / name / file).read_text().splitlines()]


def test_the_folder_is_the_one_drawn(built):
    _, names, _ = built
    drawn = re.search(r"^```\ntwice_checked/\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)[1]
    files = {Path(line.split()[0]).name for line in drawn.splitlines()}
    files -= {"pppml_twice_checked"}
    assert files == {Path(name).name for name in [*names, EMPTY] if not name.endswith(".yaml")}


def test_its_tests_pass(built):
    assert "pytest twice_checked/tests" in "\n".join(blocks("sh"))
    out = call(built, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "twice_checked/tests")
    assert int(re.search(r"(\d+) passed", out)[1]) > 35, out


def test_it_is_listed(built):
    (out,) = pppml(built, "pppml plugins --kind aggregator")
    listed = [line.split()[1] for line in out.splitlines()[1:]]
    assert {"plain", "twice-checked"} <= set(listed), listed  # and whatever else is installed


def test_it_runs_and_gives_the_same_model_as_plain(built):
    plan, *_ = pppml(
        built,
        "pppml plan tiny.yaml",
        "pppml run tiny.yaml --out runs/checked",
        "pppml run tiny.yaml --set aggregator=plain --out runs/plain",
        "pppml run faulty.yaml --out runs/faulty",
    )
    assert "twice-checked" in plan
    checked, plain = result(built, "checked"), result(built, "plain")
    assert checked["model_sha256"] == plain["model_sha256"]
    assert checked["guarantees"]["sees_sum"] == ["server", "sites"]
    sites, rounds = 3, 3
    more = len(lines(built, "checked", "transcripts/hops.jsonl")) - len(lines(built, "plain", "transcripts/hops.jsonl"))
    assert more == 2 * sites * rounds, "two messages more for each site and round"

    def declared(name):
        stages = json.loads((built[0] / "runs" / name / "manifest.json").read_text())["stages"]
        return sum(len(stage["fields"]) for stage in stages)

    assert declared("checked") - declared("plain") == 2, "two fields more"

    assert result(built, "faulty")["model_sha256"] == checked["model_sha256"]
    events = lines(built, "faulty", "events.jsonl")
    seen = ("site-lost", "round-aborted", "round-started")
    told = [(e["event"], e.get("attempt")) for e in events if e["event"] in seen and e["round"] == 2]
    assert told == [("round-started", 1), ("site-lost", None), ("round-aborted", 1), ("round-started", 2)]


def test_every_command_is_tested():
    mine = Path(__file__).read_text(encoding="utf-8")
    for block in blocks("sh"):
        for line in block.splitlines():
            assert f'"{line}"' in mine or line == "pip install -e twice_checked", line


def test_the_shape_is_that_of_new_plugin(tmp_path):
    from pppml_core.cli.new_plugin import write_plugin

    made = write_plugin("twice-checked", "aggregator", tmp_path / "made")
    template = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
    names = {EMPTY, *(n for n in written(tmp_path) if not n.endswith(".yaml"))}
    assert names == template

"""``pppml attack``: a table or a record, exit codes, and errors that say what to write instead."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def attacked(world):
    world.look()
    world.run_folder()
    return world


def test_a_table(attacked):
    done = attacked.pppml("attack runs/a --use look --vantage site:site_2")
    assert (done.code, done.err) == (0, "")
    rows = {cells[0]: " ".join(cells[1:]) for line in done.out.splitlines() if (cells := line.replace("│", " ").replace("|", " ").split())}
    assert "look, vantage site:site_2, round 1" in done.out
    assert rows["outcome"] == "recovered"
    assert rows["reason"] == "it saw [everything]", "text is text, no markup"
    assert (rows["depth"], rows["share"]) == ("3", "0.1235")
    assert "control: passed" in done.out
    assert (attacked.folder / "runs/a/attacks/look-site_site_2-r1.json").is_file()


def test_json_is_the_record_and_settings_are_taken(attacked):
    done = attacked.pppml("attack runs/a --use '{use: look, depth: 9}' --round 1 --json")
    assert done.code == 0
    record = json.loads(done.out)
    assert (record["attack"], record["vantage"], record["round"], record["metrics"]["depth"]) == ("look", "server", 1, 9)
    assert record == json.loads((attacked.folder / "runs/a/attacks/look-server-r1.json").read_text())


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("attack runs/a", 2, "--use"),
        ("attack runs/a --use lock", 2, "did you mean 'look'"),
        ("attack runs/a --use dp-sgd", 2, "no attack 'dp-sgd'"),
        ("attack runs/a --use '{depth: 3}'", 2, "names no attack"),
        ("attack runs/a --use '[look]'", 2, "names no attack"),
        ("attack runs/a --use '{use: look'", 2, "--use"),
        ("attack runs/a --use '{use: look, deep: 3}'", 2, "did you mean 'depth'"),
        ("attack runs/a --use look --vantage sever", 2, "did you mean 'server'"),
        ("attack runs/a --use look --vantage site:site_9", 2, "site_"),
        ("attack runs/a --use look --round 2", 2, "rounds 1 to 1"),
        ("attack runs/a --use look --round last", 2, "integer"),
        ("attack runs/b --use look", 2, "no run here"),
    ],
)
def test_errors_teach(attacked, line, code, said):
    done = attacked.pppml(line)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert "Traceback" not in done.err


def test_an_unfinished_run(world):
    world.look()
    world.run_folder(unfinished=True)
    done = world.pppml("attack runs/a --use look")
    assert done.code == 2
    assert "has not finished" in done.err
    assert "--resume runs/a" in done.err

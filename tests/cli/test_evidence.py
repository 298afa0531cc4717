"""``pppml evidence``: a page and a table, what is missing, and exit code 1 where a claim of privacy is refuted."""

from __future__ import annotations

import json

import pytest

MATRIX = """
base: {task: {use: tiny, sites: 2, examples: 6}, run: {rounds: 1}}
defences: {plain: {}}
attacks: [{use: look, vantages: [server, public]}]
"""


@pytest.fixture
def looked(world):
    world.look()
    world.write("m.yaml", MATRIX)
    return world


def test_a_table_a_page_and_no_second_time(looked):
    done = looked.pppml("evidence m.yaml")
    assert (done.code, done.err) == (0, "")
    assert "look, server, r1" in done.out
    assert "leaks" in done.out
    assert "[1/1] plain: 2 cells: look from server, look from public" in done.out
    assert (looked.folder / "evidence/m/report.html").is_file()
    again = looked.pppml("evidence m.yaml")
    assert again.code == 0
    assert "cells:" not in again.out


def test_when_the_time_is_over_it_says_what_is_missing(looked):
    done = looked.pppml("evidence m.yaml -o e --budget 0.0000001")
    assert done.code == 0
    assert "2 cells are missing; the same command goes on." in done.out


def test_a_refuted_claim_is_exit_code_1(looked):
    assert looked.pppml("evidence m.yaml -o e").code == 0
    path = looked.folder / "e/runs/plain/attacks/look-public-r1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "violation": True}))
    done = looked.pppml("evidence m.yaml -o e")
    assert done.code == 1
    assert "1 cells refute a claim of privacy, the first: look from public" in done.err
    assert (looked.folder / "e/report.html").is_file()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evidence n.yaml", "n.yaml"),
        ("evidence m.yaml --budget 0", "--budget"),
        ("evidence", "MATRIX"),
    ],
)
def test_errors_teach(looked, line, said):
    done = looked.pppml(line)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err

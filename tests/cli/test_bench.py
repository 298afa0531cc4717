"""``pppml bench``: rows that are true, a table, JSON, a picture; and what a person reads where something is missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pppml_core import cli
from pppml_core.benchmarking.he import HERow, he_row
from pppml_core.benchmarking.memory import peak_memory
from pppml_core.benchmarking.show import picture, plain, table
from pppml_core.benchmarking.sums import sum_row
from pppml_core.builtin.plain import Plain
from pppml_core.engines.rehearsal import Rehearsal, numbers_for
from pppml_core.errors import PlanRefused
from pppml_core.interfaces.aggregation import Session
from pppml_core.interfaces.he import HEBackend
from pppml_core.testing.insecure import InsecureMaskedSession, InsecureRingSession
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER

Go = Callable[[str], tuple[int, str, str]]
VALUE = ValueSpec(300, "integer", 100)


@pytest.fixture
def pppml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Go:
    """A command in this process with the core alone; exit code and texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPPML_PLUGINS", "pppml-core")

    def go(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(line))
        text = capsys.readouterr()
        return int(ended.value.code or 0), text.out, text.err

    return go


# -- rehearsals ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", [InsecureMaskedSession, InsecureRingSession])
def test_a_rehearsal_is_the_real_sum_with_a_clock_for_each_party(session: type[Session]) -> None:
    cohort = ("a", "b", "c", "d")
    done = Rehearsal(session(VALUE, cohort)).run()
    expected = np.sum([numbers_for(VALUE, seed) for seed in range(4)], axis=0, dtype=np.int64)
    assert np.array_equal(done.sum.total, expected)
    assert set(done.seconds) == {*cohort, SERVER}
    stages = [stage for stage in done.seconds[SERVER] if stage != "begin"]
    assert set(done.seconds["a"]) == {"open", *stages}
    assert all(seconds > 0 for stages in done.seconds.values() for seconds in stages.values())
    # Every site sends its masked numbers once, eight bytes each, and little else.
    for site in cohort:
        assert 8 * 300 < sum(done.sent[site].values()) < 8 * 300 * 2.5
    assert done.sent_by_a_site() >= 8 * 300
    assert sum(done.sent[SERVER].values()) < 8 * 300 * 2


def test_the_clocks_of_the_parties_add_up() -> None:
    import time

    def slow() -> np.ndarray:
        time.sleep(0.05)
        return numbers_for(VALUE, 0)

    cohort = ("a", "b", "c")
    began = time.perf_counter()
    done = Rehearsal(InsecureMaskedSession(VALUE, cohort), {"a": slow, "b": slow, "c": lambda: numbers_for(VALUE, 0)}).run()
    whole = time.perf_counter() - began
    assert done.seconds["a"]["masked"] >= 0.05, "a contribution is made within the site's time"
    assert done.seconds["c"]["masked"] < 0.05
    assert done.of_the_server() < whole - 0.1, "and outside the server's"
    assert done.of_a_site() >= 0.05
    total = sum(sum(stages.values()) for stages in done.seconds.values())
    assert 0.1 <= total <= whole


def test_vanished_sites_are_left_out() -> None:
    cohort = ("a", "b", "c", "d")
    done = Rehearsal(InsecureMaskedSession(VALUE, cohort), vanish={"b": "masked"}).run()
    assert done.sum.survivors == ("a", "c", "d")
    assert np.array_equal(done.sum.total, np.sum([numbers_for(VALUE, seed) for seed in (0, 2, 3)], axis=0, dtype=np.int64))
    assert "masked" not in done.seconds["b"]


def test_a_stage_is_done_again_and_again() -> None:
    rehearsal = Rehearsal(InsecureMaskedSession(VALUE, ("a", "b", "c")), vanish={"b": "masked"}, keep_sites=("a",), keep_replies=True)
    done = rehearsal.run()
    reply = rehearsal.replies["masked", "a"]
    assert ("masked", "c") not in rehearsal.moments
    for _ in range(2):
        assert rehearsal.again_at_site("masked", "a")() == reply
        for stage in ("advertise", "masked", "reveal"):
            again = rehearsal.again_at_server(stage)()
            assert again.survivors == ("a", "c")
            assert np.array_equal(again.total, done.sum.total)


# -- rows ---------------------------------------------------------------------------------------------------------------------------------


class WrongSum(InsecureMaskedSession):
    """A sum that is off by one."""

    def coordinate(self, ctx):  # type: ignore[no-untyped-def]
        found = yield from super().coordinate(ctx)
        found.total[0] += 1
        return found


def test_a_row_of_an_aggregator_says_what_was_measured() -> None:
    row = sum_row("masked", InsecureMaskedSession(VALUE, ("a", "b", "c")), 2)
    assert row.exact
    assert 8 < row.bytes_per_number < 12
    assert set(row.site_seconds) == {"open", "advertise", "masked"}
    assert set(row.server_seconds) == {"begin", "advertise", "masked"}
    assert row.total_seconds > sum(row.site_seconds.values())
    assert not sum_row("wrong", WrongSum(VALUE, ("a", "b", "c")), 1).exact


class Off(TransparentBackend):
    """Decrypts wrongly, by two."""

    def decrypt(self, params, secret, ciphertext):  # type: ignore[no-untyped-def]
        found = super().decrypt(params, secret, ciphertext)
        found[3] = (int(found[3]) + 2) % params.plaintext_modulus
        return found


class Refusing(TransparentBackend):
    """Plans nothing."""

    def plan(self, value, additions):  # type: ignore[no-untyped-def]
        raise PlanRefused(["too many additions; use fewer"])


def transparent(cls: type[HEBackend] = TransparentBackend) -> HEBackend:
    return cls(TransparentConfig())


def test_a_row_of_a_back_end_says_what_was_measured() -> None:
    row = he_row("transparent", transparent(), 500, 3, 2)
    assert row.error == 0
    assert set(row.seconds) == {"keys", "encrypt", "add", "decrypt"}
    assert row.bytes_per_number >= 2
    assert he_row("off", transparent(Off), 500, 3, 2).error == 2
    refused = he_row("refusing", transparent(Refusing), 500, 3, 2)
    assert "too many additions" in refused.refused
    assert not refused.seconds


def test_peak_memory_counts_what_is_freed_within() -> None:
    with peak_memory() as nothing:
        pass
    with peak_memory() as peak:
        held = np.ones(20 * 2**20, np.uint8)
        del held
    if peak.bytes is None:
        pytest.skip("this system does not tell")
    assert 18 * 2**20 < peak.bytes < 60 * 2**20
    assert nothing.bytes is not None
    assert nothing.bytes < 4 * 2**20


def test_a_table_and_a_picture_of_any_rows(tmp_path: Path) -> None:
    good = he_row("transparent", transparent(), 500, 3, 2)
    for rows in ([good], [good, good], [HERow("other", refused="because"), good]):
        picture(rows, "HE", tmp_path / "new" / "p.png")
        with Image.open(tmp_path / "new" / "p.png") as drawn:
            assert drawn.size[0] >= 1000
        assert table(rows, "HE").row_count == len(rows)
        assert json.loads(json.dumps(plain(rows)))[0]["name"] == rows[0].name


# -- the command --------------------------------------------------------------------------------------------------------------------------


def test_aggregators_side_by_side(pppml: Go, tmp_path: Path) -> None:
    line = "bench aggregator --use 'plain,{use: plain}' --length 1000 --sites 3 --repeats 1"
    code, out, err = pppml(f"{line} -o sums.png")
    assert (code, err) == (0, "")
    rows = [row for row in out.splitlines() if row.startswith("plain ")]
    assert len(rows) == 2
    assert all("exact" in row and "not hidden" in row for row in rows)
    assert (tmp_path / "sums.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = pppml(f"{line} --json")
    assert code == 0
    first = json.loads(out)[0]
    assert first["exact"] is True
    assert 2 <= first["bytes_per_number"] < 2.5
    assert set(first["site_seconds"]) == {"open", "contribute"}


class Picky(Plain):
    """Sums no cohort."""

    def misfits(self, value, cohort):  # type: ignore[no-untyped-def]
        return ["aggregator: the moon is in the wrong place; wait"]


def test_what_was_refused_stands_in_the_table_and_all_of_them_refused_is_an_error(pppml: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pppml_core.builtin.plain.Plain", Picky)
    code, out, err = pppml("bench aggregator --use plain")
    assert code == 2
    assert "the moon" in out
    assert "the moon" in err


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("aggregator --use secagg-plus", 3, "pppml-secagg-plus"),
        ("aggregator --use plian", 2, "did you mean 'plain'"),
        ("aggregator --use '{use: plain, bits: 3}'", 2, "bits"),
        ("aggregator --use plain --sites 0", 2, "0 is not in the range"),
        ("aggregator", 2, "--use"),
        ("he --use tenseal", 3, "pppml-he-tenseal"),
        ("he --use '{scheme: bfv}'", 2, "names no HE back end"),
        ("he --use 7", 2, "names no HE back end"),
    ],
)
def test_what_cannot_be_timed_is_told(pppml: Go, line: str, code: int, says: str) -> None:
    done = pppml(f"bench {line}")
    assert done[0] == code, done
    assert says in done[2]
    if code == 3:
        assert "PPPML_PLUGINS" in done[2] or "pip install" in done[2]


def test_a_missing_back_end_is_told_with_the_command_to_get_it(pppml: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    from pppml_core.registry import Registry

    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls: cls.only()))
    for line, name in (("he --use tenseal", "pppml-he-tenseal"), ("aggregator --use secagg-plus", "pppml-secagg-plus")):
        code, _, err = pppml(f"bench {line}")
        assert code == 3
        assert f"pip install {name}" in err


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('bench he --use ""', "nothing to compare"),
        ('bench he --use "insecure,{"', "--use"),
        ("bench he --use tenseal -o picture.zzz", ".zzz is no kind of picture"),
        ("bench he --use tenseal --length 100000000000", "100000000"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_timed(pppml: Go, line: str, text: str) -> None:
    """One paragraph, exit code 2."""
    code, _, err = pppml(line)
    assert code == 2
    assert text in err

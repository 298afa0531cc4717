"""Networks that stall, slow down and are cut, and clocks that are hours apart; a proxy stands on the line of every site."""

from __future__ import annotations

import pytest
from drilling.lines import at, patience, proxied, stall_for, strange_sites
from drilling.runs import HE, disturbed, sites, tiny
from drilling.table import LONG_STALL, PARTITION, PATIENCE, SKEW, SLOW, SPLIT, STALL, drills

SECAGG, ALL = {"aggregator": "secagg-plus"}, sites(4)
SITE = "site_2"


@pytest.fixture
def proxies(monkeypatch):
    with proxied(monkeypatch) as found:
        yield found


def by_round(rows, first=1):
    return {round: [row] for round, row in enumerate(rows, first)}


@pytest.mark.drill
def test_a_stall_of_thirty_seconds_and_a_slow_site_cost_time_only(check_rounds, proxies, tmp_path):
    """The coordinator waits an hour by default, so a stall is waited for."""
    stalls, (slow,) = drills("processes", "secagg-plus", STALL), drills("processes", "secagg-plus", SLOW)
    rounds = by_round([*stalls, slow])
    acts = []
    for round, (row, *_) in rounds.items():
        if row.breaks == STALL:
            acts.append(at(lambda: stall_for(30, proxies[SITE]), event="stage-started", round=round, stage=row.stage))
        else:
            acts.append(at(lambda: proxies[SITE].slow(0.2), event="stage-started", round=round))
    run = disturbed(tmp_path / "r", tiny(4, len(rounds), **SECAGG, engine="processes"), *acts)
    check_rounds(run, rounds, dict.fromkeys(rounds, SITE))
    took = {(e["round"], e["stage"]): e["seconds"] for e in run.events if e["event"] == "stage"}
    assert all(took[round, row.stage] > 29 for round, (row, *_) in rounds.items() if row.breaks == STALL)


def disturb(rows, breaks, mend, proxies):
    """For each round the acts that break the line of one site as its stage begins, and mend it once it counts as lost."""
    for round, (row, *_) in rows.items():
        yield at(lambda: getattr(proxies[SITE], breaks)(), event="stage-started", round=round, stage=row.stage)
        yield at(lambda: getattr(proxies[SITE], mend)(), event="site-lost", round=round)


@pytest.mark.drill
@pytest.mark.parametrize(("sum", "count"), [("secagg-plus", 4), ("cyclic-he", 5)])
def test_a_stall_beyond_the_timeout_loses_that_site(check_rounds, proxies, monkeypatch, tmp_path, sum, count):
    patience(monkeypatch, PATIENCE)
    rounds = by_round(drills("processes", sum, LONG_STALL), 2)
    aggregator = HE if sum == "cyclic-he" else sum
    sections = tiny(count, len(rounds) + 1, aggregator=aggregator, engine="processes")
    run = disturbed(tmp_path / "r", sections, *disturb(rounds, "stall", "go_on", proxies))
    check_rounds(run, rounds, dict.fromkeys(rounds, SITE))


@pytest.mark.drill
def test_a_cut_loses_those_behind_it_until_it_is_mended(check_rounds, proxies, tmp_path):
    rounds = by_round(drills("processes", "secagg-plus", PARTITION))
    cuts = [*disturb(rounds, "cut", "mend", proxies)]
    last = len(rounds) + 1
    rounds[last] = drills("processes", "secagg-plus", SPLIT)
    both = [proxies.get, (SITE, "site_4")]

    def each(what):
        return lambda: [getattr(both[0](site), what)() for site in both[1]]

    cuts += [at(each("cut"), event="stage-started", round=last, stage="mask"), at(each("mend"), event="round-aborted", round=last)]
    run = disturbed(tmp_path / "r", tiny(4, last, **SECAGG, engine="processes"), *cuts)
    check_rounds(run, rounds, dict.fromkeys(rounds, SITE))


@pytest.mark.drill
@pytest.mark.parametrize(("sum", "count"), [("secagg-plus", 4), ("cyclic-he", 3)])
def test_clocks_play_no_part(check_rounds, monkeypatch, tmp_path, sum, count):
    """No message holds a time and no decision looks at a wall clock: sites whose clocks are hours apart make the same sums."""
    notes = tmp_path / "notes"
    notes.mkdir()
    strange_sites(monkeypatch, "clock", str(notes))
    aggregator = HE if sum == "cyclic-he" else sum
    run = disturbed(tmp_path / "r", tiny(count, 2, aggregator=aggregator, engine="processes"))
    rows = drills("processes", sum, SKEW)
    check_rounds(run, {1: rows, 2: rows[:0]}, {})
    assert run.survivors == {1: sites(count), 2: sites(count)}
    hours = [int(note.read_text()) for note in notes.iterdir()]
    assert len(hours) == count
    assert all(abs(shown) >= 5 for shown in hours)

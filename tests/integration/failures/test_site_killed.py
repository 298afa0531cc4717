"""``kill -9`` of a site at every stage of every sum: its process is killed before, while and after it answers, a round each."""

from __future__ import annotations

import pytest
from drilling.runs import HE, disturbed, sites, tiny
from drilling.table import INITIATOR_KILLED, KILLS, MOMENTS, SITE_KILLED, SITES, drills

AGGREGATORS = {"plain": "plain", "secagg-plus": "secagg-plus", "cyclic-he": HE}
#: of the five sites of the rings of `cyclic-he`.
INITIATORS = {"ring-1": "site_3", "ring-2": "site_1"}


def struck_by(row, round):
    """The site that a drill kills."""
    if row.breaks == INITIATOR_KILLED:
        return INITIATORS.get(row.stage, "site_1")
    chosen = [s for s in sites(SITES[row.sum]) if row.sum != "cyclic-he" or s not in INITIATORS.values()]
    return chosen[round % len(chosen)]


@pytest.mark.drill
@pytest.mark.parametrize("sum", KILLS)
def test_a_site_is_killed_at_every_stage(check_rounds, tmp_path, sum):
    rows = [*drills("processes", sum, SITE_KILLED), *drills("processes", sum, INITIATOR_KILLED)]
    greeting = [row for row in rows if row.stage == "hello"]
    # `plain`: all three at the one greeting of the run, which must not keep them from round 1; then one drill a round.
    rounds = {1: greeting, **{round: [row] for round, row in enumerate((r for r in rows if r.stage != "hello"), 2)}}
    everyone = sites(SITES[sum])
    strikes = [{"site": s, "stage": "hello", "round": 0, "do": MOMENTS[row.moment]} for s, row in zip(everyone, greeting, strict=False)]
    struck = {round: struck_by(held[0], round) for round, held in rounds.items() if round > 1}
    strikes += [
        {"site": struck[round], "stage": rounds[round][0].stage, "round": round, "attempt": 1, "do": MOMENTS[rounds[round][0].moment]}
        for round in struck
    ]
    own = {} if sum == "plain" else {"run": {"metrics": "none"}}
    sections = tiny(SITES[sum], len(rounds), aggregator=AGGREGATORS[sum], engine={"use": "processes", "faults": strikes}, **own)
    check_rounds(disturbed(tmp_path / "r", sections), rounds, struck)

"""One configuration and one seed give the same model, the same charges and the same wire manifest on every engine.

NVFlare's POC and Flower's SuperLink and SuperNodes are real processes here, with TLS. Noise is secret, so with differential privacy models
differ, and what is charged for it is compared instead: at the coordinator and at each site.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from drilling.far import ENGINES, needed
from drilling.runs import HE, disturbed, sites, tiny

from pppml_core.wire.codec import sha256_of

COUNT, ROUNDS, SITE = 4, 2, "site_3"
#: sum -> the aggregator, and a stage at which a site may vanish in one attempt without the round being lost.
SUMS = {"plain": ("plain", "contribute"), "secagg-plus": ("secagg-plus", "mask"), "cyclic-he": (HE, "open")}
NOISE = {"use": "dp-update", "clip": 1.0, "noise_multiplier": 2.0}
#: relays go through the server everywhere: of `nvflare` the drills of far engines have a ring that goes from site to site.
STAR = {"topology": "star"}
EVERYWHERE = {
    "local": {"use": "local", **STAR},
    "processes": {"use": "processes"},
    **{name: {**settings, **(STAR if name == "nvflare" else {})} for name, settings in ENGINES.items()},
}
CASES = [*((sum, *how) for sum in SUMS for how in ((False, False), (True, False), (True, True)))]


def ledgers(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Party -> what was charged there, apart from the hash of what was noised, which is as secret as the noise, and the time."""
    found = {}
    for path in folder.rglob("ledger.jsonl"):
        party = path.parent.name if path.parent != folder else "coordinator"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[party] = [{name: value for name, value in line.items() if name not in ("contribution", "time")} for line in lines]
    return found


@pytest.mark.drill
@pytest.mark.parametrize(("sum", "lost", "noisy"), CASES, ids=lambda v: v if isinstance(v, str) else str(v))
def test_all_engines_give_the_same(record_property, tmp_path, sum, lost, noisy):
    for engine in ENGINES:
        needed(engine)
    aggregator, stage = SUMS[sum]
    faults = [{"site": SITE, "stage": stage, "round": ROUNDS, "do": "drop"}] if lost else []
    privacy = {"privacy": NOISE} if noisy else {}
    came: dict[str, dict[str, Any]] = {}
    for name, settings in EVERYWHERE.items():
        sections = tiny(COUNT, ROUNDS, aggregator=aggregator, engine={**settings, "faults": faults}, **privacy)
        run = disturbed(tmp_path / name, sections)
        came[name] = {
            "model": run.result["model_sha256"],
            "ledgers": ledgers(run.folder),
            "manifest": sha256_of(json.loads((run.folder / "manifest.json").read_text())).hex(),
            "survivors": run.survivors,
        }
    own = came["local"]
    compared = ("ledgers", "manifest", "survivors") if noisy else ("model", "ledgers", "manifest", "survivors")
    equal = {what: [name for name in came if came[name][what] == own[what]] for what in compared}
    case = f"{sum}{', a site lost' * lost}{', with noise' * noisy}"
    record_property("equality", json.dumps([case, {what: equal.get(what) for what in ("model", "ledgers", "manifest")}, list(came)]))
    assert own["survivors"][ROUNDS] == [site for site in sites(COUNT) if not lost or site != SITE]
    assert own["survivors"][1] == sites(COUNT)
    if noisy:
        assert set(own["ledgers"]) == {"coordinator", *sites(COUNT)}
        assert all(own["ledgers"].values())
    for what, engines in equal.items():
        assert engines == list(EVERYWHERE), (what, {name: came[name][what] for name in came})

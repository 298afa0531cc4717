"""Sites that are lost: before the agreement the sum of the survivors, after it a clean end without another attempt. Never a wrong sum."""

from __future__ import annotations

import os
import random
from typing import Any, get_args

import pytest

from pppml_core.engines.faults import Deed
from pppml_core.errors import RoundLost, TooFewSurvivors
from pppml_core.testing.harness import site_names
from pppml_core.wire.messages import SERVER

#: random schedules of faults; ``PPPML_SCHEDULES=2000`` tries more.
SCHEDULES = int(os.environ.get("PPPML_SCHEDULES", "60"))
BEFORE, AFTER = ("advertise", "keys", "ring-1", "ring-2", "agree", "confirm"), ("release",)


@pytest.mark.parametrize(("sites", "topology"), [(4, "star")])
def test_one_loss_before_the_release(cyclic: Any, sites: int, topology: str) -> None:
    """Once lost: bridged, or everybody is back in the second attempt. Gone for good: the sum of the others, on fewer rings."""
    initiators = cyclic.harness(sites).session().setting.rings.initiators
    assert len(initiators) == 2
    for stage in BEFORE:
        for site in site_names(sites):
            for do in ("drop", "drop-reply"):
                once = {"site": site, "stage": stage, "do": do}
                result = cyclic.run(sites, once, topology=topology, attempts=2)
                asked = site in initiators or stage != "agree"
                bridged = (stage, do) == ("ring-1", "drop") and site not in initiators
                assert result.correct, (once, result.aborted)
                assert set(result.survivors) == set(site_names(sites)) - ({site} if bridged else set()), once
                assert len(result.attempts) == (2 if asked and not bridged else 1), once
                if do == "drop":
                    continue  # the second attempt does not know why the first one ended
                gone = {"site": site, "stage": "open", "do": "drop", "attempt": 2}
                result = cyclic.run(sites, once, gone, topology=topology, attempts=2)
                assert result.correct, (once, gone, result.aborted)
                assert set(result.survivors) == set(site_names(sites)) - ({site} if asked else set()), (once, gone)


@pytest.mark.parametrize(("sites", "rings"), [(4, 1), (5, 2)])
@pytest.mark.parametrize("do", ["drop", "drop-reply"])
def test_one_loss_after_the_agreement(cyclic: Any, sites: int, rings: int, do: str) -> None:
    for site in site_names(sites):
        result = cyclic.run(sites, {"site": site, "stage": "release", "do": do}, rings=rings, attempts=3)
        assert isinstance(result.aborted, RoundLost), site
        assert len(result.attempts) == 1, "a round whose sums were released is not repeated"
        assert result.sum is None


def test_two_losses_end_in_the_sum_of_the_others(cyclic: Any) -> None:
    """One bridged in the first ring and one lost later: the second attempt is over the four that come back."""
    first, second = {"site": "d", "stage": "ring-1", "do": "drop"}, {"site": "e", "stage": "ring-2", "do": "drop-reply"}
    gone = {"site": "e", "stage": "open", "do": "drop", "attempt": 2}
    result = cyclic.run(5, first, second, gone, attempts=2)
    assert result.correct
    assert result.survivors == ("a", "b", "c", "d")


def test_three_sites_cannot_spare_one(cyclic: Any) -> None:
    """Of three none is bridged; with two the aggregator refuses, for each would learn the other's update."""
    gone = [{"site": "c", "stage": "ring-1", "do": "drop"}, {"site": "c", "stage": "open", "do": "drop", "attempt": 2}]
    result = cyclic.run(3, *gone, attempts=2)
    assert isinstance(result.aborted, TooFewSurvivors)
    assert isinstance(result.attempts[0].aborted, TooFewSurvivors)
    assert "fewer than 3" in str(result.attempts[0].aborted)


def test_the_loss_of_an_initiator_is_never_bridged(cyclic: Any) -> None:
    for site in ("a", "c"):
        result = cyclic.run(5, {"site": site, "stage": "ring-1", "do": "drop"})
        assert "ring-1" in str(result.aborted)
        assert not any(p.message.stage == "reseal" for p in result.transcript.passages)


def test_nothing_is_left_when_the_round_is_over(cyclic: Any) -> None:
    """Keys, seeds and ciphertexts are gone from every state; before that, what has served is gone already."""
    result = cyclic.run(5, remember=True)
    assert all(state == {} for state in result.states.values())
    for site, history in result.attempts[0].history.items():
        after_rings = next(state for state in history if len(state.get("links", ())) == 2)
        assert "shares" not in after_rings
        assert ("hop" in after_rings) == (site in ("a", "c")), "only initiators get one more hop"
        agreed = [state for state in history if "closing" in state and "confirmed" not in state]
        assert len(agreed) == (site in ("a", "c"))
        assert all("hop" not in state and not any(name.startswith("box-") for name in state) for state in agreed)
        confirmed = [state for state in history if "confirmed" in state]
        assert [set(state) - {"secret", "closing"} for state in confirmed] == [{"agreed", "seed", "confirmed"}]
        assert all(("secret" in state) == ("closing" in state) == (site in ("a", "c")) for state in confirmed)


def test_fresh_keys_in_every_attempt(cyclic: Any) -> None:
    """No key, seed or public key of the first attempt is met again in the second."""
    result = cyclic.run(5, {"site": "b", "stage": "agree", "do": "drop-reply"}, {"site": "c", "stage": "agree", "do": "drop"}, attempts=2)
    assert result.correct
    one, two = ({drawn for site in a.drawn.values() for drawn in site} for a in result.attempts)
    assert len(one) == sum(map(len, result.attempts[0].drawn.values()))
    assert not one & two
    adverts = [p.message for p in result.transcript.passages if p.message.stage == "advertise" and p.message.sender != SERVER]
    assert len({m.body["hop"] for m in adverts}) == 10
    assert len({m.body["public"] for m in adverts if m.body["public"]}) == 4


@pytest.mark.parametrize("part", range(3))
def test_random_schedules(cyclic: Any, part: int) -> None:
    """Up to four faults of any kind at any place, in up to three attempts: the sum over the survivors or none, and one release at most."""
    for seed in range(part, SCHEDULES, 3):
        dice = random.Random(seed)
        sites = dice.randint(3, 7)
        rings = dice.choice([r for r in (1, 2, 3) if r <= (2 if sites == 4 else (sites - 1) // 2)])
        places = ["open", *BEFORE, *AFTER, "ring-3", "reseal"]
        deeds = [deed for deed in get_args(Deed) if deed != "tamper-body"]  # a lie under a valid checksum is no fault of a network
        faults = [
            {"site": dice.choice(site_names(sites)), "stage": stage, "do": "drop" if stage == "open" else dice.choice(deeds)}
            | {"attempt": dice.randint(1, 2)}
            for stage in dice.choices(places, k=dice.randint(1, 4))
        ]
        options = {"rings": rings, "topology": dice.choice(["p2p", "star"]), "amnesia": dice.random() < 0.2, "attempts": 3}
        result = cyclic.run(sites, *faults, **options)
        case = (seed, sites, options, faults)
        assert not result.crashes, (case, result.crashes)
        assert result.aborted is not None or result.correct, case
        released = {frozenset(over) for sets in result.released.values() for over in sets}
        assert len(released) <= 1, (case, released)
        if result.aborted is None:
            assert released == {frozenset(result.survivors)}, case
        elif released:
            assert isinstance(result.aborted, RoundLost), case

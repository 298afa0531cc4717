"""A lying server has a site bridged that was handed its hop, so that an initiator gets the sums before and after that site's share.

With the seed of the site's self-mask the initiators would read its update. Only the site that bridged it knows both stories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pppml_core.errors import RoundAborted
from pppml_core.randomness import Secret
from pppml_core.wire.messages import Exchange, Relay
from pppml_cyclic_he import uniform
from pppml_cyclic_he.hops import LINK_BYTES, hops_of

COHORTS = [(4, 1), (5, 1), (8, 1), (5, 2), (10, 2)]


def victim_of(rings: Any) -> tuple[str, str]:
    """(victim, the site before it in the first ring): the last of that ring for which in the others the one before comes first,
    too, but not just before."""
    for before, victim in reversed(list(pairwise(rings.path(0)))):
        places = [(rings.path(ring).index(before), rings.path(ring).index(victim)) for ring in range(1, rings.count)]
        free = not {before, victim} & set(rings.initiators) and rings.keeps([victim])
        if free and all(one + 1 < other for one, other in places):
            return victim, before
    raise AssertionError("no such pair")


class Lying:
    """A server that lets the victim add and sign, and has it bridged all the same: ``when`` the first ring, or before a later stage.

    Everybody else is told what an honest server says; the site before the victim hears in the rings that follow that it is left out.
    """

    def __init__(self, when: str = "ring-1") -> None:
        self.when = when
        self.messages: dict[str, Any] = {}

    def __call__(self, session: Any, ctx: Any) -> Any:
        self.victim, self.before = victim_of(session.setting.rings)
        honest = session.coordinate(ctx)
        try:
            asked = next(honest)
            while True:
                outcome = yield from self.walked(asked) if isinstance(asked, Relay) else self.asked(asked)
                asked = honest.send(outcome)
        except StopIteration as stop:
            return stop.value
        finally:
            honest.close()

    def asked(self, operation: Any) -> Iterator[Any]:
        if operation.stage == self.when:
            self.bridged = yield Exchange("reseal", {self.before: {"without": [self.victim]}})
        return (yield operation)

    def walked(self, relay: Relay) -> Any:
        first = relay.stage == "ring-1"
        stop = self.victim if first else self.before
        place = relay.path.index(stop)
        told = (yield replace(relay, path=relay.path[:place])).body
        if not first and self.when == "ring-1":
            told = {**told, "without": [self.victim]}
        outcome = yield replace(relay, path=(stop,), body=told)
        if first:
            self.messages |= {"to": told, "from": outcome.body}
            if self.when == "ring-1":
                self.bridged = yield Exchange("reseal", {self.before: {"without": [self.victim]}})
        if rest := relay.path[place + 1 :]:
            outcome = yield replace(relay, path=rest, body={**outcome.body, "without": []})
        return outcome


@pytest.mark.parametrize(("sites", "rings"), COHORTS)
def test_who_was_handed_its_hop_is_not_bridged_by_claim(cyclic: Any, refused: Any, nobody_released: Any, sites: int, rings: int) -> None:
    """Default policies everywhere. The rings close, the initiators agree; the site before the victim does not confirm."""
    lying = Lying()
    result = cyclic.run(sites, rings=rings, coordinate=lying)
    assert not lying.bridged.lost, "the coalition has both sums of the first ring"
    assert [stage for stage, *_ in result.losses] == ["confirm"]
    refused(result, "confirm", "left out is in it again", lying.before)
    nobody_released(result)


@pytest.mark.parametrize("when", ["agree", "confirm", "release"])
@pytest.mark.parametrize(("sites", "rings"), COHORTS)
def test_a_claim_that_comes_late(cyclic: Any, refused: Any, nobody_released: Any, when: str, sites: int, rings: int) -> None:
    """Until the second ring, or the confirmation, a box may be handed on, but then nobody confirms; afterwards it may not."""
    lying = Lying(when)
    result = cyclic.run(sites, rings=rings, coordinate=lying)
    assert not result.crashes, result.crashes
    if rings == 1 and when != "release":
        assert not lying.bridged.lost
        refused(result, "confirm", "left out is in it again", lying.before)
        nobody_released(result)
    else:
        assert set(lying.bridged.lost) == {lying.before}
        assert result.correct


@pytest.mark.parametrize(("sites", "rings"), COHORTS)
def test_nobody_releases_without_the_site_that_knows(cyclic: Any, refused: Any, nobody_released: Any, sites: int, rings: int) -> None:
    """The server asks everybody but that site to confirm, and puts another signature in its place, or none."""
    lying = Lying()

    def coordinate(session: Any, ctx: Any) -> Any:
        honest = lying(session, ctx)
        asked = next(honest)
        while asked.stage != "confirm":
            asked = honest.send((yield asked))
        honest.close()
        outcome = yield replace(asked, bodies={site: body for site, body in asked.bodies.items() if site != lying.before})
        assert lying.victim in outcome.replies, outcome.lost
        signatures = {site: reply["signature"] for site, reply in outcome.replies.items()}
        half = len(asked.bodies) // 2
        for sites, given in ((sorted(asked.bodies)[:half], {}), (sorted(asked.bodies)[half:], {lying.before: signatures[lying.victim]})):
            yield Exchange("release", {site: {} for site in sites}, common={"signatures": {**signatures, **given}})
        raise RoundAborted("enough")

    result = cyclic.run(sites, rings=rings, coordinate=coordinate)
    assert not lying.bridged.lost
    others = sorted(set(result.contributions) - {lying.before})
    refused(result, "release", f"signature of {lying.before}", *others)
    nobody_released(result)


@pytest.mark.parametrize("sites", [4, 5, 8])
def test_what_the_seed_would_give(cyclic: Any, memory: Any, sites: int) -> None:
    """The attack is one: with one ring, what the server and the initiator hold lacks nothing but the seed that the victim keeps."""
    lying = Lying()
    result = cyclic.run(sites, rings=1, coordinate=lying)
    setting = cyclic.harness(sites, rings=1).session().setting
    path, states = setting.rings.path(0), result.states
    starter, place = path[0], path.index(lying.victim)
    digest, secret = states[starter]["agreed"]["digest"], Secret(states[starter]["secret"])
    answer = lying.bridged.replies[lying.before]
    into = lying.messages["to"]["chain"][:-LINK_BYTES] + answer["link"]
    assert place == sites - 1, "the initiator comes after the victim: it works with the server, and nobody else"
    sums = []
    for along, chain, body in (
        ((*path, starter), lying.messages["from"]["chain"], lying.messages["from"]),
        ((*path[:place], starter), into, {**lying.messages["to"], "key": answer["key"]}),
    ):
        hop = hops_of(digest, 0, chain, along)[-1]
        sums.append(setting.backend.decrypt(setting.params, secret, hop.receive(states[starter]["hop"], body)))
    own, without = sums
    uniform.subtract(own, without, setting.modulus)
    uniform.subtract(own, uniform.residues(states[lying.victim]["seed"], setting.params.length, setting.modulus), setting.modulus)
    assert np.array_equal(setting.params.integers(own), result.contributions[lying.victim])

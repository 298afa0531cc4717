"""The bytes test: two worlds in which two honest sites have swapped their inputs; the sum is the same, and so must be all that is seen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pppml_core.federation.policy import Policy
from pppml_core.interfaces.aggregation import ServerContext, Sum
from pppml_core.testing.parties import ReleaseRecord, harness_context, identity_of
from pppml_core.testing.worlds import distinguish
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import encode
from pppml_core.wire.messages import ExchangeOutcome, Message
from pppml_secagg_plus import keys, masks
from pppml_secagg_plus.adverts import Advert
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.members import places_of
from pppml_secagg_plus.session import SecAggPlus

SITES = ("a", "b", "c")
VALUE = ValueSpec(16, "integer", 32_767)
INPUTS = [np.full(16, 30_000, np.int32), np.full(16, -30_000, np.int32), np.arange(16, dtype=np.int32)]
TRIALS = 1000


class Played:
    """One session of three sites, message by message: what went through the server, and what each site held."""

    def __init__(self, contributions: Mapping[str, Any]) -> None:
        roster = {party: identity_of(party).public for party in (*SITES, "server")}
        header: Any = (b"r" * 16, 1, 1, SITES, os.urandom(32), roster)
        session = SecAggPlus(SecAggPlusConfig()).plan(VALUE, SITES)
        ctx = {s: harness_context(s, header, Policy(), identity_of(s), contributions[s], ReleaseRecord(s)) for s in SITES}
        state: dict[str, Any] = {s: session.open(ctx[s]) for s in SITES}
        self.held = {s: [state[s]] for s in SITES}
        self.sent: dict[tuple[str, str], Any] = {}
        coordinator = session.coordinate(ServerContext(*header))
        try:
            op: Any = next(coordinator)
            while True:
                for s, body in op.bodies.items():
                    message = Message(b"r" * 16, 1, 1, "session", op.stage, "server", s, {**op.common, **body})
                    state[s], reply = session.handle(state[s], message, ctx[s])
                    self.held[s].append(state[s])
                    self.sent[op.stage, s] = reply
                    op.fold(s, reply)
                op = coordinator.send(ExchangeOutcome({}, tuple(op.bodies), {}))
        except StopIteration as stop:
            self.sum: Sum = stop.value
        self.binding = header[4]

    def unmasked(self, site: str, *opened: str) -> Any:
        """The site's masked input without its self-mask and without its masks with the sites ``opened``, whose keys are known."""
        total = self.sent["mask", site]["values"].copy()
        adverts = {s: Advert.unpack(self.sent["advertise", s]["advert"]) for s in SITES}
        known = [(keys.self_mask_key(self.held[site][0]["seed"], self.binding), -1)]
        for other in opened:
            pair = keys.Pair.of(self.binding, places_of(SITES), (site, adverts[site].mask_key), (other, adverts[other].mask_key))
            known.append((keys.mask_key(pair, other, keys.Agreement(self.held[other][0]["mask_private"])), -keys.mask_sign(pair, site)))
        masks.add_masks(total, known)
        return total

    def bytes(self) -> bytes:
        """All that the honest sites a and b have sent."""
        return b"".join(encode(self.sent[key]) for key in sorted(self.sent) if key[1] != "c")


def played(world: int) -> Played:
    first, second = (0, 1) if world == 0 else (1, 0)
    return Played({"a": INPUTS[first], "b": INPUTS[second], "c": INPUTS[2]})


def test_this_is_a_session() -> None:
    result = played(1)
    assert np.array_equal(result.sum.total, sum(INPUTS))
    assert np.array_equal(result.unmasked("a", "b", "c").view(np.int32), INPUTS[1])


def test_the_server_and_one_of_three_see_a_fair_coin() -> None:
    """All bytes, all c ever held, and both inputs without every mask that the two can take away (the server has rebuilt all seeds)."""

    def view(world: int, trial: int) -> bytes:
        result = played(world)
        return (
            result.bytes()
            + encode({"states": result.held["c"]})
            + result.unmasked("a", "c").tobytes()
            + result.unmasked("b", "c").tobytes()
        )

    # 500 fair coins are outside of this with probability 2.8e-4, twice with 8e-8.
    assert any(0.42 <= distinguish(view, TRIALS) <= 0.58 for _ in range(2))


def test_the_control_tells_the_worlds_apart() -> None:
    """One colluder more, who shares the last mask of a: what is left is a's input."""
    accuracy = distinguish(lambda world, trial: (result := played(world)).bytes() + result.unmasked("a", "b", "c").tobytes(), 200)
    assert accuracy >= 0.99

"""The server's side, as one reads the protocol: advertise, walk the rings, have the list agreed on and confirmed, release, finish.

Until the release anything lost ends the attempt, and the round may start another one with everything fresh; a site that was never handed
the sum in the first ring is bridged instead. After the release the round is finished or lost.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from pppml_core.errors import PolicyRefusal, RoundAborted, RoundLost, TooFewSurvivors, WireError
from pppml_core.federation.identity import agreement_key, unseal, verify
from pppml_core.interfaces.aggregation import Coordinator, ServerContext, Sum
from pppml_core.interfaces.he import Residues
from pppml_core.wire.codec import Encoded, sha256_of
from pppml_core.wire.messages import Body, Exchange, ExchangeOutcome, Relay, RelayOutcome
from pppml_cyclic_he import adverts, uniform
from pppml_cyclic_he.hops import LINK_BYTES
from pppml_cyclic_he.setting import Setting, read, stage_of
from pppml_cyclic_he.site import confirmation, released_place

Closings = list[dict[str, Any]]


class Coordination:
    """One attempt. ``private``: the key to which sites seal what they release."""

    def __init__(self, setting: Setting, ctx: ServerContext) -> None:
        self._setting, self._ctx, self._rings = setting, ctx, setting.rings
        self._private, self._public = agreement_key()
        ctx.remember({"hop": self._private})
        self._digest = b""
        self._without: tuple[str, ...] = ()
        self._stage = "advertise"
        self._may_restart = True

    def coordinate(self) -> Coordinator:
        """The six stages. Raises RoundAborted; RoundLost where no other attempt may follow."""
        try:
            yield from self._advertise()
            closings = yield from self._relay()
            lists = yield from self._agree(closings)
            signatures = yield from self._confirm(lists)
            total = yield from self._release(signatures)
        except (WireError, PolicyRefusal) as error:
            raise self._abort(str(error)) from error
        finally:
            self._private = b""
        survivors = tuple(site for site in self._ctx.cohort if site not in self._without)
        return Sum(total, survivors)

    # -- stages -----------------------------------------------------------------------------------------------------------------------

    def _advertise(self) -> Generator[Exchange, ExchangeOutcome, None]:
        """Collect everybody's adverts and hand all of them to everybody."""
        given = yield from self._ask("advertise", {site: {} for site in self._rings.order})
        for site in self._rings.order:
            adverts.check(self._setting, site, given[site], self._ctx.binding, self._ctx.roster)
        body = {"adverts": dict(given), "server": adverts.make_server_key(self._ctx.binding, self._ctx.sign, self._public)}
        self._digest = adverts.digest(self._ctx.binding, body)
        yield from self._ask("keys", {site: {} for site in self._rings.order}, {name: Encoded(value) for name, value in body.items()})

    def _relay(self) -> Generator[Exchange | Relay, Any, Closings]:
        """Walk the rings one after another. What comes out of each is still sealed, to its initiator."""
        closings: Closings = []
        for ring in range(self._rings.count):
            self._stage, self._may_restart = stage_of(ring), self._setting.exact
            path = self._rings.path(ring, self._without)
            body: Body | None = {"chain": b"", "without": list(self._without)}
            while path:
                outcome: RelayOutcome = yield Relay(self._stage, path, body or {})
                if not outcome.lost:
                    body = outcome.body
                    break
                site, reason = next(iter(outcome.lost.items()))
                if not self._can_bridge(ring, site) or outcome.unhanded is None:
                    raise self._abort(f"{site} was lost: {reason}")
                body = yield from self._bridge(site, outcome.unhanded)
                path = path[path.index(site) + 1 :]
            closings.append(dict(body or {}))
        return closings

    def _can_bridge(self, ring: int, site: str) -> bool:
        return self._setting.exact and ring == 0 and site not in self._rings.initiators

    def _bridge(self, site: str, body: Body) -> Generator[Exchange, ExchangeOutcome, Body]:
        """The site before one that was never handed the sum hands it to the one after."""
        if len(self._rings.order) - len(self._without) <= 3:
            raise TooFewSurvivors(f"{site} cannot be reached, and fewer than 3 sites would be left", place=self._place)
        path = self._rings.path(0, self._without)
        self._without = tuple(sorted({*self._without, site}))
        if not self._rings.keeps(self._without):
            raise self._abort(f"{site} cannot be reached, and with it bridged the sum would withstand fewer sites than the plan says")
        chain = read(body, "chain", bytes)
        before = path[path.index(site) - 1]
        answers = yield from self._ask("reseal", {before: {"without": list(self._without)}})
        self._stage = stage_of(0)
        key, link = read(answers[before], "key", bytes), read(answers[before], "link", bytes)
        return {**body, "key": key, "chain": chain[:-LINK_BYTES] + link, "without": list(self._without)}

    def _agree(self, closings: Closings) -> Generator[Exchange, ExchangeOutcome, dict[str, Any]]:
        """The initiators get their rings back and sign who is in them."""
        starters, without = self._rings.initiators, list(self._without)
        bodies = {site: {**body, "without": without} for site, body in zip(starters, closings, strict=True)}
        answers = yield from self._ask("agree", bodies)
        chains = [read(body, "chain", bytes) for body in closings]
        return {"chains": chains, "signatures": [read(answers[site], "signature", bytes) for site in starters], "without": without}

    def _confirm(self, lists: Mapping[str, Any]) -> Generator[Exchange, ExchangeOutcome, dict[str, bytes]]:
        """Every member checks all chains and lists, and signs for them."""
        answers = yield from self._ask("confirm", {site: {} for site in self._members}, lists)
        signatures = {site: read(answers[site], "signature", bytes) for site in self._members}
        confirmed = {"without": list(self._without), "chains": sha256_of(lists["chains"]), "adverts": self._digest}
        statement = confirmation(self._ctx.binding, confirmed)
        for site, signature in signatures.items():  # nobody would release without it, and then no attempt could follow
            verify(self._ctx.roster[site], signature, statement, site)
        return signatures

    def _release(self, signatures: Mapping[str, bytes]) -> Generator[Exchange, ExchangeOutcome, np.ndarray[Any, Any]]:
        """Every member gives up its self-mask and the initiators their sums; what is left is the sum."""
        members = self._members
        self._may_restart = False
        answers = yield from self._ask("release", {site: {} for site in members}, {"signatures": signatures})
        setting, length = self._setting, self._setting.params.length
        sums = [self._opened_sum(site, answers[site]) for site in self._rings.initiators]
        if not setting.exact:
            return sums[0].astype(np.int64)
        total: Residues = np.zeros(length, np.uint64)
        for ring_sum in sums:
            uniform.add(total, ring_sum.astype(np.uint64), setting.modulus)
        for site in members:
            seed = self._opened(site, answers[site], "seed")
            if len(seed) != uniform.SEED_BYTES:
                raise WireError(f"{site} sent a seed of another length", place="release")
            uniform.subtract(total, uniform.residues(seed, length, setting.modulus), setting.modulus)
        return setting.params.integers(total)

    # -- parts ------------------------------------------------------------------------------------------------------------------------

    @property
    def _members(self) -> list[str]:
        return [site for site in self._rings.order if site not in self._without]

    @property
    def _place(self) -> str:
        return f"round {self._ctx.round}, stage {self._stage}"

    def _abort(self, reason: str) -> RoundAborted:
        return (RoundAborted if self._may_restart else RoundLost)(reason, place=self._place)

    def _ask(
        self, stage: str, bodies: Mapping[str, Body], common: Mapping[str, Any] | None = None
    ) -> Generator[Exchange, ExchangeOutcome, Mapping[str, Body]]:
        """An exchange in which everybody must answer."""
        self._stage = stage
        outcome: ExchangeOutcome = yield Exchange(stage, bodies, common=common or {})
        for site, reason in outcome.lost.items():
            raise self._abort(f"{site} was lost: {reason}")
        return outcome.replies

    def _opened(self, site: str, body: Body, what: str) -> bytes:
        return unseal(self._private, read(body, what, bytes), released_place(self._digest, what, site))

    def _opened_sum(self, site: str, body: Body) -> np.ndarray[Any, Any]:
        plain, dtype = self._opened(site, body, "sum"), self._setting.sum_dtype
        if len(plain) != dtype.itemsize * self._setting.params.length:
            raise WireError(f"{site} sent a sum of another length", place="release")
        values: np.ndarray[Any, Any] = np.frombuffer(plain, dtype)
        if self._setting.exact and int(values.max(initial=0)) >= self._setting.modulus:
            raise WireError(f"{site} sent a number beyond the modulus", place="release")
        return values


def coordinate(setting: Setting, ctx: ServerContext) -> Coordinator:
    """The server's side of one attempt."""
    return Coordination(setting, ctx).coordinate()

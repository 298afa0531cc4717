"""The server's side: five exchanges, one after the other, as in Bonawitz et al. 2017 (with Bell et al. 2020's graph where it is sparse).

The server is not trusted with anything here. What it checks, it checks so that one site with a damaged message is one lost site and not the
loss of the round: sites that are given such a message refuse.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pppml_core.errors import InconsistentModel, RoundLost, TooFewSurvivors, WireError
from pppml_core.federation.identity import agreement_key, verify
from pppml_core.interfaces.aggregation import Body, Coordinator, ServerContext, Sum
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import Exchange, ExchangeOutcome
from pppml_secagg_plus import adverts, keys
from pppml_secagg_plus.adverts import Advert
from pppml_secagg_plus.graph import Graph
from pppml_secagg_plus.members import read_map, rows_of
from pppml_secagg_plus.site_side import agreement, nonce_statement
from pppml_secagg_plus.terms import Terms
from pppml_secagg_plus.unmask import Collected, unmasked

Step = Generator[Exchange, Any, Any]


@dataclass
class ServerSide:
    """The server in one attempt."""

    terms: Terms
    value: ValueSpec
    word: np.dtype[np.unsignedinteger]
    ctx: ServerContext
    packed: dict[str, bytes] = field(default_factory=dict)
    signatures: dict[str, bytes] = field(default_factory=dict)
    read: dict[str, Advert] = field(default_factory=dict)

    def run(self) -> Coordinator:
        """All exchanges; the sum over U3."""
        committed = (yield from self._commit()) if self.terms.sparse else {}
        graph = yield from self._advertise(committed)
        boxes = yield from self._share(graph)
        shared = tuple(name for name in graph.members if name in boxes)
        total, alive = yield from self._mask(graph, boxes, shared)
        signed = yield from self._agree(graph, shared, alive)
        collected = yield from self._unmask(graph, shared, alive, signed)
        found = unmasked(total, collected, graph, self.read, self.ctx, self.terms.threshold, alive)
        if max(int(found.max(initial=0)), -int(found.min(initial=0))) > (self.value.sum_bound(len(alive)) or 0):
            raise RoundLost(
                "what is left without the masks is no sum of contributions: a site sent something else", place=self._at("unmask")
            )
        return Sum(found, alive)

    # -- the exchanges ------------------------------------------------------------------------------------------------------------------

    def _commit(self) -> Step:
        """Commitments to the nonces that will decide the ring."""
        committed: dict[str, bytes] = {}
        strangers: list[str] = []

        def take(site: str, body: Body) -> None:
            binding, commitment = body.get("binding", b""), body.get("commitment", b"")
            if len(commitment) != adverts.NONCE_BYTES:
                raise WireError(f"the commitment of {site} does not have {adverts.NONCE_BYTES} bytes", place="commit")
            verify(self._identity(site), body.get("signature"), nonce_statement(binding, commitment), site)
            if binding != self.ctx.binding:
                strangers.append(site)
            committed[site] = commitment

        outcome = yield Exchange("commit", {site: {} for site in self.ctx.cohort}, take)
        self._consistent(strangers, "commit")
        self._enough(outcome, "commit")
        return {site: committed[site] for site in outcome.answered}

    def _advertise(self, committed: Mapping[str, bytes]) -> Step:
        """U1: public keys and commitments, and the graph over them."""
        sparse, strangers = self.terms.sparse, list[str]()
        roster = adverts.pinned(self.ctx.roster, self.ctx.cohort)
        own = Advert(self.terms, roster, self.ctx.binding, *[adverts.NOTHING] * 3)
        probe = keys.Agreement(agreement_key()[0])

        def take(site: str, body: Body) -> None:
            try:
                advert = adverts.read(site, body.get("advert"), body.get("signature"), self._identity(site), own)
            except InconsistentModel:
                strangers.append(site)
                return
            for key in (advert.box_key, advert.mask_key):
                probe.key(key, b"probe")  # raises WireError for a key that all others would have to refuse
            if sparse and adverts.commit_nonce(advert.nonce, self.ctx.binding, site) != committed[site]:
                raise WireError(f"{site} had committed to another nonce", place="advertise")
            self.packed[site], self.signatures[site], self.read[site] = body["advert"], body["signature"], advert

        asked = committed if sparse else self.ctx.cohort
        common: Body = {"members": list(committed), "commitments": rows_of(committed.values())} if sparse else {}
        outcome = yield Exchange("advertise", {site: {} for site in asked}, take, common=common)
        self._consistent(strangers, "advertise")
        self._enough(outcome, "advertise")
        return self._graph(outcome.answered)

    def _share(self, graph: Graph) -> Step:
        """U2: the shares of both secrets of each site, in boxes for its neighbours."""
        boxes: dict[str, Mapping[str, bytes]] = {}

        def take(site: str, body: Body) -> None:
            found = read_map(body.get("boxes"), graph.neighbours(site), "boxes")
            if any(len(box) != keys.BOX_BYTES for box in found.values()):
                raise WireError("a box of shares has another length", place="boxes")
            boxes[site] = found

        def own(site: str) -> Body:
            if not self.terms.sparse:
                return {}
            near = graph.neighbours(site)
            return {"adverts": {n: self.packed[n] for n in near}, "signatures": {n: self.signatures[n] for n in near}}

        if self.terms.sparse:
            digests = rows_of(adverts.digest(self.packed[name]) for name in graph.members)
            common: Body = {"members": list(graph.members), "digests": digests}
        else:
            common = {"adverts": dict(self.packed), "signatures": dict(self.signatures)}
        outcome = yield Exchange("share", {site: own(site) for site in graph.members}, take, common=common)
        self._enough(outcome, "share")
        return boxes

    def _mask(self, graph: Graph, boxes: Mapping[str, Mapping[str, bytes]], shared: Sequence[str]) -> Step:
        """U3: masked inputs, added as they arrive."""
        total = np.zeros(self.value.length, self.word)

        def take(site: str, body: Body) -> None:
            if "values" not in body:
                raise WireError(f"{site} sent no masked input", place="mask")
            np.add(total, body["values"], out=total)

        def own(site: str) -> Body:
            near = graph.neighbours(site)
            return {"boxes": {n: boxes[n][site] for n in shared if n in near}}

        outcome = yield Exchange("mask", {site: own(site) for site in shared}, take, common={"shared": list(shared)})
        self._enough(outcome, "mask")
        return total, outcome.answered

    def _agree(self, graph: Graph, shared: Sequence[str], alive: Sequence[str]) -> Step:
        """Signatures of U3 under the list of U3."""
        signed = agreement(self.ctx.binding, self.ctx.cohort, graph.seed, shared, alive)
        signatures: dict[str, bytes] = {}

        def take(site: str, body: Body) -> None:
            verify(self._identity(site), body.get("signature"), signed, site)
            signatures[site] = body["signature"]

        outcome = yield Exchange("agree", {site: {} for site in alive}, take, common={"alive": list(alive)})
        self._enough(outcome, "agree")
        for site in shared:
            if len(graph.holders(site) & signatures.keys()) < self.terms.threshold:
                text = f"fewer than {self.terms.threshold} of the sites that hold shares of {site} are left"
                raise TooFewSurvivors(text, place=self._at("agree"))
        return signatures

    def _unmask(self, graph: Graph, shared: Sequence[str], alive: Sequence[str], signed: Mapping[str, bytes]) -> Step:
        """Shares of the seeds of U3 and of the mask keys of the others. From here on the round is finished or lost."""
        dead = [name for name in shared if name not in alive]
        collected = Collected({name: {} for name in alive}, {name: {} for name in dead})

        def take(site: str, body: Body) -> None:
            near = graph.holders(site)
            seeds = read_map(body.get("seed_shares"), [n for n in alive if n in near], "seed_shares")
            private = read_map(body.get("key_shares"), [n for n in dead if n in near], "key_shares")
            collected.take(site, seeds, private)

        lists: Body = {"alive": list(alive), "dead": dead}
        if graph.complete:
            yield Exchange("unmask", {site: {} for site in signed}, take, common={**lists, "signatures": dict(signed)})
        else:
            own = {site: {"signatures": {n: signed[n] for n in graph.holders(site) & signed.keys()}} for site in signed}
            yield Exchange("unmask", own, take, common=lists)
        return collected

    def _graph(self, members: Sequence[str]) -> Graph:
        seed = adverts.digest_all(b"adverts", members, [adverts.digest(self.packed[name]) for name in members])
        return Graph(members, self.terms.degree, seed)

    # -- small things -------------------------------------------------------------------------------------------------------------------

    def _identity(self, site: str) -> bytes:
        return self.ctx.roster[site]

    def _consistent(self, strangers: Sequence[str], stage: str) -> None:
        if strangers:
            names = ", ".join(sorted(strangers))
            raise InconsistentModel(f"the model or terms of {names} are not those of this attempt", place=self._at(stage))

    def _enough(self, outcome: ExchangeOutcome, stage: str) -> None:
        if len(outcome.answered) >= self.terms.threshold:
            return
        first = next(iter(outcome.lost.items()), None)
        text = f"{len(outcome.answered)} of {self.terms.sites} sites are left, {self.terms.threshold} are needed"
        raise TooFewSurvivors(text + (f"; {first[0]}: {first[1]}" if first else ""), place=self._at(stage))

    def _at(self, stage: str) -> str:
        return f"round {self.ctx.round}, attempt {self.ctx.attempt}, stage {stage}"

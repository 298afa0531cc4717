"""INSECURE example sessions. They show the shape of a protocol and exercise the kit; they protect nothing. Never use them on real data.

``InsecureMaskedSum`` has the shape of a masked sum with dropout recovery (Bonawitz et al. 2017, without its cryptography): three
exchanges, ``advertise``, ``masked`` and ``reveal``. The pairwise seeds pass through the server in the clear.

``InsecureRing`` has the shape of a ring: a running sum goes from site to site over a ``Relay``, hidden under the first site's mask, and a
site that cannot be reached is bridged. Any two neighbours of a site, and a server that carries the hops, read that site's update.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import RoundAborted, TooFewSurvivors, WireError
from pppml_core.interfaces.aggregation import (
    Aggregator,
    Body,
    Coordinator,
    Exposure,
    Guarantees,
    Message,
    ServerContext,
    Session,
    SiteContext,
    State,
    Sum,
    WireField,
)
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER, Exchange, Relay

Words = npt.NDArray[np.uint64]

INSECURE = "INSECURE: an example for tests, without cryptography; it hides nothing from the server"
SEED_BYTES = 7  # a seed fits a signed 64-bit integer


def _words(contribution: npt.NDArray[np.generic]) -> Words:
    """Signed integers modulo 2**64."""
    return contribution.astype(np.int64).view(np.uint64)


def _mask(seed: int, length: int) -> Words:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 2**64, length, dtype=np.uint64)


def _seed(ctx: SiteContext) -> int:
    return int.from_bytes(ctx.entropy(SEED_BYTES), "big")


def _seeds(value: object, names: Collection[str], place: str) -> dict[str, int]:
    """A map of exactly these names to seeds, or WireError."""
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise WireError("not one seed for each", place=place)
    if not all(type(seed) is int and 0 <= seed < 2 ** (8 * SEED_BYTES) for seed in value.values()):
        raise WireError("a seed is an integer of 7 bytes", place=place)
    return dict(value)


def _names(value: object, known: Collection[str], place: str) -> list[str]:
    """A list of different names that are known, or WireError."""
    if not isinstance(value, list) or not all(isinstance(n, str) and n in known for n in value) or len(set(value)) < len(value):
        raise WireError("not a list of sites, each once", place=place)
    return value


def _array(value: object, length: int, place: str) -> Words:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint64 or value.shape != (length,):
        raise WireError(f"not {length} words", place=place)
    return value


class InsecureMaskedSession(Session):
    """Pairwise masks that cancel in the sum; a vanished site's are rebuilt from the seeds its peers reveal.

    A site's seeds: ``drawn`` for every later site of the cohort, ``given`` by every earlier one.
    """

    @property
    def guarantees(self) -> Guarantees:
        """None against the server, which sees the seeds."""
        return Guarantees(
            sees_sum=(SERVER,),
            sees_update=(SERVER,),
            sees_weight=(SERVER,),
            dropouts=min(1, len(self.cohort) - 2),
            coalition_curious=0,
            coalition_active=0,
            adversary="none",
            assumes=(INSECURE,),
        )

    @property
    def fields(self) -> tuple[WireField, ...]:
        """Seeds, the masked contribution, and the seeds shared with vanished sites."""
        clear, length = "in the clear", self.value.length
        return (
            WireField("advertise", "seeds.*", "int", (), 8, clear, "seed of the mask shared with one other site"),
            WireField("masked", "values", "uint64", (length,), 8 * length, "masked, by seeds the server saw", "the update"),
            WireField("reveal", "seeds.*", "int", (), 8, clear, "seed shared with a site that vanished"),
        )

    def coordinate(self, ctx: ServerContext) -> Coordinator:
        """Exchange seeds, collect masked values, take out what the vanished sites' masks left in the sum."""
        adverts = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        drawn = {site: seeds for site in adverts.answered if (seeds := self._advertised(site, adverts.replies[site])) is not None}
        peers = list(drawn)
        if len(peers) < 2:
            raise TooFewSurvivors("fewer than two sites advertised", place=f"round {ctx.round}, stage advertise")
        given = {site: {other: drawn[other][site] for other in peers if self._before(other, site)} for site in peers}
        total = np.zeros(self.value.length, np.uint64)

        def add(site: str, body: Body) -> None:
            np.add(total, _array(body.get("values"), self.value.length, site), out=total)

        uploads = yield Exchange("masked", {site: {"given": given[site]} for site in peers}, add, common={"peers": peers})
        alive = list(uploads.answered)
        if len(alive) < 2:
            raise TooFewSurvivors("fewer than two sites sent their values", place=f"round {ctx.round}, stage masked")
        vanished = [site for site in peers if site not in alive]
        if vanished:
            reveals = yield Exchange("reveal", {site: {} for site in alive}, common={"vanished": vanished})
            if len(reveals.answered) < len(alive):
                raise TooFewSurvivors("a survivor vanished before it revealed", place=f"round {ctx.round}, stage reveal")
            for site in alive:
                try:
                    total -= self._masks(site, _seeds(reveals.replies[site].get("seeds"), vanished, site))
                except WireError as error:
                    raise RoundAborted(str(error), place=f"round {ctx.round}, stage reveal") from error
        return Sum(total.view(np.int64), tuple(alive))

    def _advertised(self, site: str, body: Body) -> dict[str, int] | None:
        try:
            return _seeds(body.get("seeds"), [other for other in self.cohort if self._before(site, other)], site)
        except WireError:
            return None  # as if it had not answered

    def open(self, ctx: SiteContext) -> State:
        """Draw a seed for each later site."""
        return {"drawn": {other: _seed(ctx) for other in ctx.cohort if self._before(ctx.site, other)}}

    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """The site's side of the three exchanges."""
        if message.stage == "advertise":
            return state, {"seeds": state["drawn"]}
        if message.stage == "masked":
            peers = _names(message.body.get("peers"), self.cohort, ctx.site)
            if ctx.site not in peers:
                raise WireError("this site is not among the peers", place=ctx.site)
            given = _seeds(message.body.get("given"), [other for other in peers if self._before(other, ctx.site)], ctx.site)
            seeds = {**given, **{other: seed for other, seed in state["drawn"].items() if other in peers}}
            return {**state, "seeds": seeds}, {"values": _words(ctx.contribution()) + self._masks(ctx.site, seeds)}
        if message.stage == "reveal":
            return state, {
                "seeds": {other: state["seeds"][other] for other in _names(message.body.get("vanished"), state.get("seeds", {}), ctx.site)}
            }
        raise WireError(f"there is no stage {message.stage!r}", place=ctx.site)

    def exposed(self, view: Mapping[str, Any]) -> list[Exposure]:
        """The server has every seed, so it unmasks every upload; sites by themselves learn nothing."""
        if SERVER not in view["parties"]:
            return []
        drawn = {m.sender: m.body["seeds"] for m in view["messages"] if m.stage == "advertise" and m.kind == "reply"}
        asked = {m.recipient: m.body["peers"] for m in view["messages"] if m.stage == "masked" and m.kind == "session"}
        out = []
        for m in view["messages"]:
            if m.stage == "masked" and m.kind == "reply":
                peers = [other for other in asked[m.sender] if other != m.sender]
                seeds = {o: drawn[m.sender][o] if self._before(m.sender, o) else drawn[o][m.sender] for o in peers}
                out.append(Exposure((m.sender,), (m.body["values"] - self._masks(m.sender, seeds)).view(np.int64)))
        return out

    def _before(self, one: str, other: str) -> bool:
        return self.cohort.index(one) < self.cohort.index(other)

    def _masks(self, site: str, seeds: Mapping[str, int]) -> Words:
        """The sum of a site's pairwise masks: added towards later sites, subtracted towards earlier ones."""
        total = np.zeros(self.value.length, np.uint64)
        for other, seed in seeds.items():
            mask = _mask(seed, self.value.length)
            total = total + mask if self._before(site, other) else total - mask
        return total


class InsecureRingSession(Session):
    """A running sum modulo 2**64 around the ring; the first site that is reached starts it with a mask and removes the mask at the end."""

    @property
    def guarantees(self) -> Guarantees:
        """None: on a star the server carries the hops."""
        return Guarantees(
            sees_sum=(SERVER,),
            sees_update=(SERVER,),
            sees_weight=(SERVER,),
            dropouts=0,
            coalition_curious=0,
            coalition_active=0,
            adversary="none",
            assumes=(INSECURE, "a site that was handed the sum does not vanish"),
        )

    @property
    def fields(self) -> tuple[WireField, ...]:
        """The running sum and the first site's mask."""
        size = 8 * self.value.length
        return (
            WireField("ring", "running", "uint64", (self.value.length,), size, "masked by the first site", "sum of the sites so far"),
            WireField("ring", "path", "list", (), 64 + 80 * len(self.cohort), "in the clear", "names of the sites so far"),
            WireField("unmask", "mask", "uint64", (self.value.length,), size, "in the clear", "the mask of the first site"),
        )

    relays = ("ring",)

    def coordinate(self, ctx: ServerContext) -> Coordinator:
        """Send the sum around, then ask the site that started it for its mask."""
        place = f"round {ctx.round}, stage ring"
        ring = yield Relay("ring", ctx.cohort, bridge=True)
        if ring.lost:
            raise RoundAborted(f"the ring broke at {', '.join(ring.lost)}: {'; '.join(ring.lost.values())}", place=place)
        if len(ring.visited) < 2:
            raise TooFewSurvivors("fewer than two sites were reached", place=place)
        first = ring.visited[0]
        answer = yield Exchange("unmask", {first: {}})
        if first not in answer.replies:
            raise RoundAborted(f"{first} kept its mask: {answer.lost[first]}", place=f"round {ctx.round}, stage unmask")
        try:
            mask = _array(answer.replies[first].get("mask"), self.value.length, first)
            running = _array((ring.body or {}).get("running"), self.value.length, ring.visited[-1])
        except WireError as error:
            raise RoundAborted(str(error), place=f"round {ctx.round}, stage unmask") from error
        return Sum((running - mask).view(np.int64), ring.visited)

    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """Add to the running sum, or start it under a mask; hand the mask out at the end."""
        if message.stage == "ring":
            own = _words(ctx.contribution())
            if message.sender != SERVER:
                running = _array(message.body.get("running"), self.value.length, ctx.site)
                path = _names(message.body.get("path"), self.cohort, ctx.site)
                if not path or ctx.site in path:
                    raise WireError("the sum was here before, or nowhere", place=ctx.site)
                return state, {"running": running + own, "path": [*path, ctx.site]}
            mask = _mask(_seed(ctx), self.value.length)
            return {"mask": mask}, {"running": own + mask, "path": [ctx.site]}
        if message.stage == "unmask" and "mask" in state:
            return state, {"mask": state["mask"]}
        raise WireError(f"there is no stage {message.stage!r} for this site", place=ctx.site)

    def exposed(self, view: Mapping[str, Any]) -> list[Exposure]:
        """Differences of any two running sums that pass through the coalition, and of one and the mask."""
        known: dict[tuple[str, ...], Words] = {}  # sites so far -> mask plus their sum
        for m in view["messages"]:
            if m.stage == "ring" and m.sender != SERVER:
                known[tuple(m.body["path"])] = m.body["running"]
            if m.stage == "unmask" and m.kind == "reply":
                known[()] = m.body["mask"]
        for state in view["states"].values():
            if "mask" in state:
                known[()] = state["mask"]
        cuts = sorted(known, key=len)
        return [
            Exposure(later[len(earlier) :], (known[later] - known[earlier]).view(np.int64))
            for i, earlier in enumerate(cuts)
            for later in cuts[i + 1 :]
        ]


class _Insecure(Aggregator):
    def misfits(self, value: ValueSpec, cohort: Sequence[str]) -> list[str]:
        """Two sites or more."""
        out = super().misfits(value, cohort)
        if len(cohort) < 2:
            out.append("aggregator: needs at least two sites; add sites or use `plain`")
        return out


class InsecureMaskedSum(_Insecure):
    """Offered as ``insecure-masked-sum`` by :mod:`pppml_core.testing.insecure_plugin` only."""

    def plan(self, value: ValueSpec, cohort: Sequence[str]) -> InsecureMaskedSession:
        """The session."""
        return InsecureMaskedSession(value, cohort)


class InsecureRing(_Insecure):
    """Offered as ``insecure-ring`` by :mod:`pppml_core.testing.insecure_plugin` only."""

    def plan(self, value: ValueSpec, cohort: Sequence[str]) -> InsecureRingSession:
        """The session."""
        return InsecureRingSession(value, cohort)

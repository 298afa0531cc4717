"""``plain``: each site sends its contribution and the server adds them up. The server sees every update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import TooFewSurvivors
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
from pppml_core.wire.messages import SERVER, Exchange


class PlainSession(Session):
    """One stage, ``contribute``."""

    repeatable = True

    @property
    def guarantees(self) -> Guarantees:
        """Nothing is hidden from the server; sites see nothing of each other."""
        return Guarantees(
            sees_sum=(SERVER,),
            sees_update=(SERVER,),
            sees_weight=(SERVER,),
            dropouts=len(self.cohort) - 1,
            coalition_curious=0,
            coalition_active=0,
            adversary="none: the server is trusted with every site's update",
            arithmetic="exact" if self.value.kind == "integer" else "approximate",
        )

    @property
    def fields(self) -> tuple[WireField, ...]:
        """The contribution, in the smallest type that holds it."""
        dtype = self.value.dtype()
        size = self.value.length * dtype.itemsize + 256
        says = "the site's weighted update, its weight and its training metrics"
        return (WireField("contribute", "values", dtype.name, (self.value.length,), size, "in the clear: the server reads it", says),)

    def coordinate(self, ctx: ServerContext) -> Coordinator:
        """Integers are added as they arrive. Floating sums depend on order, so those wait for their turn in the cohort."""
        real = self.value.kind == "real"
        total = np.zeros(self.value.length, np.float64 if real else np.int64)
        waiting: dict[str, npt.NDArray[Any]] = {}
        turn = list(ctx.cohort)

        def fold(site: str, body: Body) -> None:
            self.value.check(body.get("values"))
            if not real:
                np.add(total, body["values"], out=total)
                return
            waiting[site] = body["values"]
            while turn and turn[0] in waiting:
                np.add(total, waiting.pop(turn.pop(0)), out=total)

        outcome = yield Exchange("contribute", {site: {} for site in ctx.cohort}, fold)
        for site in turn:
            if site in waiting:
                np.add(total, waiting.pop(site), out=total)
        if not outcome.answered:
            reason = next(iter(outcome.lost.values()))
            raise TooFewSurvivors(f"no site contributed; the first: {reason}", place=f"round {ctx.round}, stage contribute")
        return Sum(total, outcome.answered)

    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """The contribution as it is."""
        return state, {"values": ctx.contribution().astype(self.value.dtype(), copy=False)}

    def exposed(self, view: Mapping[str, Any]) -> list[Exposure]:
        """Whoever is, or sees, the server reads every single contribution."""
        messages = view.get("messages", ())
        return [
            Exposure((m.sender,), m.body["values"])
            for m in messages
            if m.kind == "reply" and m.stage == "contribute" and "values" in m.body
        ]


class Plain(Aggregator):
    """The aggregator of that name."""

    accepts_real = True

    def plan(self, value: ValueSpec, cohort: Sequence[str]) -> PlainSession:
        """A session for any value and at least one site."""
        return PlainSession(value, cohort)

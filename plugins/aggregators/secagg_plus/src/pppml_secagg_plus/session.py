"""``secagg-plus`` as an aggregator: terms and session for a cohort, and what may leave a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pppml_core.errors import PlanRefused
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
    WireField,
)
from pppml_core.values import ValueSpec
from pppml_secagg_plus import terms as settled
from pppml_secagg_plus.adverts import ADVERT_BYTES
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.exposure import exposed
from pppml_secagg_plus.keys import BOX_BYTES
from pppml_secagg_plus.server_side import ServerSide
from pppml_secagg_plus.shamir import SHARE_BYTES
from pppml_secagg_plus.site_side import SiteSide, opened
from pppml_secagg_plus.terms import Terms


class SecAggPlusSession(Session):
    """One sum over one cohort.

    Args:
        value: integers with a bound.
        cohort: the sites of this attempt, in the task's order.
        config: the same at all parties.
        terms: what follows from it for this cohort; they are in every signed advert.
        word: what the sum is computed in, uint32 or uint64.
    """

    def __init__(
        self, value: ValueSpec, cohort: Sequence[str], config: SecAggPlusConfig, terms: Terms, word: np.dtype[np.unsignedinteger]
    ) -> None:
        super().__init__(value, cohort)
        self.config, self.terms, self.word = config, terms, word

    @property
    def guarantees(self) -> Guarantees:
        """Computed from the number of sites, of neighbours and of shares needed."""
        return settled.guarantees(self.terms, self.config)

    @property
    def fields(self) -> tuple[WireField, ...]:
        """Keys and signatures in the clear, shares in boxes, the input under masks, and shares of what is needed to take masks away."""
        clear, length = "in the clear, signed", self.value.length
        commit = (
            WireField("commit", "binding", "bytes", (), 32, clear, "hash of run, attempt, model and terms as the site has them"),
            WireField("commit", "commitment", "bytes", (), 32, clear, "hash of a random number that helps to order the ring"),
            WireField("commit", "signature", "bytes", (), 64, "in the clear", "the site's signature"),
        )
        return (
            *(commit if self.terms.sparse else ()),
            WireField("advertise", "advert", "bytes", (), ADVERT_BYTES, clear, "fresh public keys, commitment to a seed, agreed terms"),
            WireField("advertise", "signature", "bytes", (), 64, "in the clear", "the site's signature"),
            WireField("share", "boxes.*", "bytes", (), BOX_BYTES, "encrypted to one other site", "shares of this attempt's key and seed"),
            WireField(
                "mask", "values", self.word.name, (length,), length * self.word.itemsize, "masked: uniform to all others", "the update"
            ),
            WireField("agree", "signature", "bytes", (), 64, "in the clear", "the site's signature under the list of sites in the sum"),
            WireField("unmask", "seed_shares.*", "bytes", (), SHARE_BYTES, "in the clear", "share of the seed of a site in the sum"),
            WireField("unmask", "key_shares.*", "bytes", (), SHARE_BYTES, "in the clear", "share of the mask key of a site that vanished"),
        )

    def coordinate(self, ctx: ServerContext) -> Coordinator:
        """The server's side."""
        return ServerSide(self.terms, self.value, self.word, ctx).run()

    def open(self, ctx: SiteContext) -> State:
        """Fresh secrets."""
        return opened(self.terms, ctx)

    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """The site's side."""
        return SiteSide(self.terms, self.value, self.word, ctx).answer(message.stage, state, message.body)

    def exposed(self, view: Mapping[str, Any]) -> list[Exposure]:
        """What a coalition can decode."""
        return exposed(self.cohort, view)

    def predicted_bytes(self) -> dict[str, int]:
        """As ``fields``, but a box and a share for each neighbour."""
        near = [len(name) for name in self.cohort][: self.terms.holders]
        frame = 224
        sizes = {
            "advertise": ADVERT_BYTES + 64,
            "share": sum(BOX_BYTES + 11 + name for name in near[1:]),
            "mask": self.value.length * self.word.itemsize,
            "agree": 64,
            "unmask": sum(SHARE_BYTES + 11 + name for name in near),
        }
        if self.terms.sparse:
            sizes = {"commit": 32 + 32 + 64, **sizes}
        return {stage: size + frame for stage, size in sizes.items()}


class SecAggPlus(Aggregator):
    """The aggregator of that name."""

    config: SecAggPlusConfig

    def misfits(self, value: ValueSpec, cohort: Sequence[str]) -> list[str]:
        """Reals, sums beyond 64 bits, fewer than three sites, and numbers that do not fit together."""
        out = super().misfits(value, cohort)
        if value.kind == "integer" and settled.word_of(value, len(cohort)) is None:
            out.append("aggregator: the sum does not fit 64 bits with its sign; lower encoding.bits")
        if len(cohort) < 3:
            return [*out, f"aggregator: secagg-plus needs three sites, here are {len(cohort)}: a sum over two is no secret between them"]
        found = settled.settle(self.config, len(cohort))
        return [*out, f"aggregator.{found}"] if isinstance(found, str) else out

    def plan(self, value: ValueSpec, cohort: Sequence[str]) -> SecAggPlusSession:
        """The session. Raises PlanRefused where there are misfits."""
        refused = self.misfits(value, cohort)
        found, word = settled.settle(self.config, len(cohort)), settled.word_of(value, len(cohort))
        if refused or isinstance(found, str) or word is None:
            raise PlanRefused(refused)
        return SecAggPlusSession(value, cohort, self.config, found, word)

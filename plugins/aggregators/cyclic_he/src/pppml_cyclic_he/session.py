"""The hardened ring as a session: what it promises, what a site sends, and which code answers which stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pppml_core.errors import WireError
from pppml_core.federation.identity import KEY_BYTES, SEAL_OVERHEAD, SIGNATURE_BYTES
from pppml_core.interfaces.aggregation import (
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
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import encoded_size
from pppml_core.wire.messages import SERVER
from pppml_cyclic_he import exposure, hops, server, uniform
from pppml_cyclic_he.rings import Rings
from pppml_cyclic_he.setting import Setting, stage_of
from pppml_cyclic_he.site import Site

#: standard deviation of a fresh error, by the HomomorphicEncryption.org standard.
NOISE_STD = 3.2
#: no public key of a back end is larger.
LARGEST_KEY = 64 * 2**20


class HardenedSession(Session):
    """One sum along ``rings`` rings."""

    def __init__(self, value: ValueSpec, cohort: Sequence[str], rings: int, params: HEParams, backend: HEBackend) -> None:
        super().__init__(value, cohort)
        self.setting = Setting(value, Rings(tuple(sorted(cohort)), rings), params, backend)
        self.relays = tuple(stage_of(ring) for ring in range(rings))

    def coordinate(self, ctx: ServerContext) -> Coordinator:
        """The six stages at the server."""
        return server.coordinate(self.setting, ctx)

    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """One stage at a site. Raises PppmlError for anything that is not the next step of an honest session."""
        site, body = Site(self.setting, state, ctx), message.body
        if message.stage == "advertise":
            return site.advertise()
        if message.stage == "keys":
            return site.keys(body)
        if message.stage in self.relays:
            return site.ring(self.relays.index(message.stage), body)
        if message.stage == "reseal" and self.setting.exact:
            return site.reseal(body)
        if message.stage == "agree":
            return site.agree(body)
        if message.stage == "confirm":
            return site.confirm(body)
        if message.stage == "release":
            return site.release(body)
        raise WireError(f"there is no stage {message.stage!r}", place=ctx.site)

    # -- what is promised -------------------------------------------------------------------------------------------------------------

    @property
    def guarantees(self) -> Guarantees:
        """Computed from the rings of this cohort."""
        rings, exact = self.setting.rings, self.setting.exact
        many = f"{rings.count} ring{'s' if rings.count > 1 else ''} of {len(self.cohort)} sites, started by {', '.join(rings.initiators)}"
        losses = (
            "a site lost before the sum is agreed on is bridged or the round starts again without it; one lost afterwards costs the round"
            if exact
            else "any lost site costs the round, which is never tried again"
        )
        hiding = (
            "whoever decrypts sees the noise of the encryption too, which hides how the encrypted shares were rounded statistically, not"
            f" perfectly: {self._residual} (docs/cyclic-he.md)"
            if exact
            else "approximate arithmetic: no self-masks, so the initiator sees the sum before the server does; it releases nearest integers"
        )
        return Guarantees(
            sees_sum=(SERVER,) if exact else (SERVER, *rings.initiators),
            sees_update=(),
            sees_weight=(),
            dropouts=0,
            coalition_curious=rings.curious(),
            coalition_active=rings.active(),
            adversary=f"the server and sites that follow the protocol or, for the second number, lie; {many}",
            assumes=(
                f"the smallest coalition that reads one site's update is the server with {', '.join(rings.isolating())}",
                losses,
                hiding,
                "the identities pinned at each site are those of different parties",
                "a member that lies can falsify the sum",
                "hops are sealed from site to site: a server that carries them (star) sees their sizes and hashes, and nothing more",
            ),
        )

    @property
    def _residual(self) -> str:
        """An estimate of what the noise tells a key holder about all shares together: a Gaussian channel a coefficient.

        A sum of n shares carries n rounding residues of variance 1/12, under n encryption noises of variance s^2 (4N/3 + 1), s = 3.2.
        """
        degree, slots = self.setting.params.details.get("degree"), self.setting.params.details.get("slots")
        if not isinstance(degree, int) or not isinstance(slots, int):
            return "how much depends on the back end"
        coefficients = -(-self.setting.params.length // slots) * degree
        nats = coefficients / (24 * NOISE_STD**2 * (4 * degree / 3 + 1))
        return f"about {nats / math.log(2):.2g} bits of a whole vector, and only where the server and all initiators work together"

    @cached_property
    def fields(self) -> tuple[WireField, ...]:
        """Everything a site sends."""
        signed, exact, cohort = "in the clear, signed", self.setting.exact, self.setting.rings.order
        box = self.setting.params.ciphertext_bytes
        chain, names = hops.LINK_BYTES * len(cohort), encoded_size(list(cohort))
        fields = [
            WireField("advertise", "binding", "bytes", (), 32, signed, "hash of run, round, attempt, model, terms and identities"),
            WireField("advertise", "params", "bytes", (), 32, signed, "hash of the encryption parameters"),
            WireField("advertise", "rings", "bytes", (), 32, signed, "hash of the rings and their order"),
            WireField("advertise", "hop", "bytes", (), KEY_BYTES, signed, "public key to which hops are sealed"),
            WireField("advertise", "public", "bytes", (), LARGEST_KEY, signed, "public key of the ring this site initiates, else empty"),
            WireField("advertise", "signature", "bytes", (), SIGNATURE_BYTES, "in the clear", "signature of the advert"),
        ]
        sealed = "encrypted to the initiator, sealed to the next site"
        for stage in self.relays:
            fields += [
                WireField(stage, "box", "bytes", (), box + box // 16 + 4096, sealed, "sum of the shares so far"),
                WireField(stage, "key", "bytes", (), hops.HANDED_BYTES, "sealed to the next site", "key of the box"),
                WireField(stage, "chain", "bytes", (), chain, signed, "hops so far: sender, recipient, hashes"),
                WireField(stage, "without", "list", (), names, "in the clear", "sites that were left out"),
            ]
        if exact:
            fields += [
                WireField("reseal", "key", "bytes", (), hops.HANDED_BYTES, "sealed to the site after", "key of the box, bridging a site"),
                WireField("reseal", "link", "bytes", (), hops.LINK_BYTES, signed, "the hop that leads past that site"),
            ]
        fields.append(WireField("agree", "signature", "bytes", (), SIGNATURE_BYTES, "in the clear", "signature of the list of sites"))
        fields.append(WireField("confirm", "signature", "bytes", (), SIGNATURE_BYTES, "in the clear", "signature of all lists and chains"))
        what = "masked, sealed to the server" if exact else "sealed to the server"
        fields.append(WireField("release", "sum", "bytes", (), self._sum_bytes, what, "decrypted sum of a ring, from its initiator"))
        if exact:
            seed = uniform.SEED_BYTES + SEAL_OVERHEAD
            fields.append(WireField("release", "seed", "bytes", (), seed, "sealed to the server", "seed of the site's self-mask"))
        return tuple(fields)

    @property
    def _sum_bytes(self) -> int:
        return self.setting.sum_dtype.itemsize * self.setting.params.length + SEAL_OVERHEAD

    def predicted_bytes(self) -> dict[str, int]:
        """Stage -> bytes a site sends, on average over those that send: one ciphertext a ring."""
        rings, params = self.setting.rings, self.setting.params
        sites = len(rings.order)
        public, secret = self.setting.backend.keygen(params)
        secret.wipe()
        hop = params.ciphertext_bytes + hops.BOX_OVERHEAD + hops.HANDED_BYTES + hops.LINK_BYTES * (sites + 1) // 2
        seeds = uniform.SEED_BYTES + SEAL_OVERHEAD if self.setting.exact else 0
        return {
            "advertise": 3 * 32 + KEY_BYTES + SIGNATURE_BYTES + len(public) * rings.count // sites,
            "keys": 0,
            **dict.fromkeys(self.relays, hop),
            "agree": SIGNATURE_BYTES,
            "confirm": SIGNATURE_BYTES,
            "release": seeds + self._sum_bytes * rings.count // sites,
        }

    def exposed(self, view: Mapping[str, Any]) -> list[Exposure]:
        """The sums that a coalition can decode: of everybody in the list where the server takes part; of every group of sites that it
        cuts off from the others where it holds all initiators' keys as well.
        """
        return exposure.exposed(self.setting, view)

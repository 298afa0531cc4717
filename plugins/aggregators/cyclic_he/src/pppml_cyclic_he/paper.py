"""``variant: paper``: the ring as the PPPML-HMI code has it. FOR REFERENCE AND AS AN EXHIBIT: IT IS NOT SECURE.

One CKKS key pair is shared by all sites. In round r the site at place r of the cohort, counted round and round, is the initiator: it adds
a Gaussian mask of standard deviation 10,000 to its update and starts the running sum; every site adds its own update to the ciphertext and
passes it on; the initiator encrypts the mask, subtracts it, decrypts, and the server gets the sum (JoshuaChou2018/PPPML-HMI, commit
52b6b2e). As every site can decrypt what passes through its hands, two neighbours read the site between them exactly, mask or not.

What differs from the code: there, one process held everything. Here the key is made by the first site and sealed to the others, under
signed adverts; the mask is drawn by the initiator, seeded by the operating system, and added in float64 (the code: float32, which costs
up to 5.5e-3 more); the vector is encrypted as a whole (the code: tensor by tensor); an update is its integers divided by their bound, so
that it lies in [-1, 1], and the sum is rounded back to integers. The arithmetic stays approximate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import InconsistentModel, PlanRefused, PolicyRefusal, RoundAborted, RoundLost, WireError
from pppml_core.federation.identity import KEY_BYTES, SEAL_OVERHEAD, agreement_key, public_key, seal, statement, unseal, verify
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
    Sum,
    WireField,
)
from pppml_core.interfaces.he import HEBackend, HEParams, Reals
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import sha256_of
from pppml_core.wire.messages import SERVER, Exchange, Relay
from pppml_cyclic_he.setting import read

#: Standard deviation of the mask, in units of a real-valued update.
MASK_STD = 1e4
FEWEST = 3
#: The code's CKKS parameters, as a back end names them in ``HEParams.details``.
PAPER = {"degree": 8192, "modulus_bits": 218, "scale": 2.0**26}
#: Largest key on the wire: with the rotation keys that the code makes, and no sum needs, a public key has about 93 MiB.
KEY_LIMIT = 1 << 27


def misfits(backend: HEBackend, value: ValueSpec, cohort: Sequence[str]) -> list[str]:
    """All reasons why the paper's ring cannot sum this value over this cohort."""
    out = []
    if len(cohort) < FEWEST:
        out.append(f"aggregator: {len(cohort)} sites: with two, each learns the other's update from the sum; add sites")
    if value.kind != "integer" or not value.bound:
        return [*out, "aggregator: the value has no bound; use `encoding: fixed`"]
    try:
        params = _parameters(backend, value, cohort)
    except PlanRefused as refused:
        return [*out, *refused.misfits]
    if params.arithmetic != "approximate" or any(params.details.get(name) != value for name, value in PAPER.items()):
        hint = "use `backend: {use: tenseal, scheme: ckks, preset: paper}`, or `variant: hardened`"
        out.append(f"aggregator.backend: `variant: paper` is CKKS with ring degree 8192, 218 bits and scale 2^26; {hint}")
    return out


def _parameters(backend: HEBackend, value: ValueSpec, cohort: Sequence[str]) -> HEParams:
    # What is encrypted is a real number under the mask, at most ten standard deviations; taking the mask off is one addition more.
    return backend.plan(ValueSpec(value.length, "integer", int(10 * MASK_STD)), len(cohort) + 1)


class PaperSession(Session):
    """One round of the paper's ring. Raises PlanRefused where :func:`misfits` has a reason."""

    def __init__(self, value: ValueSpec, cohort: Sequence[str], backend: HEBackend) -> None:
        super().__init__(value, cohort)
        if reasons := misfits(backend, value, cohort):
            raise PlanRefused(reasons)
        self._backend, self._params = backend, _parameters(backend, value, cohort)
        self._unit = float(value.bound or 1)
        self._total = ValueSpec(value.length, "integer", value.sum_bound(len(cohort)))

    @property
    def guarantees(self) -> Guarantees:
        """None against two parties: every site holds the key."""
        error = "of unknown size" if self._params.error_std is None else f"of standard deviation {self._params.error_std * self._unit:.2g}"
        return Guarantees(
            sees_sum=(SERVER, "initiator"),
            sees_update=(),
            sees_weight=(),
            dropouts=0,
            coalition_curious=0,
            coalition_active=0,
            adversary="one party alone that follows the protocol",
            assumes=(
                "for reference and as an exhibit, not for real data: all sites share one secret key",
                "no two sites compare notes: the two neighbours of a site read its update exactly",
                "no site works with the server: together they take off the mask, and read every hop that the server carries",
                "the Gaussian mask hides the initiator's update from the next site statistically, not perfectly",
                f"approximate: a number of the sum has an error {error}, in steps of its integers",
            ),
            arithmetic="approximate",
        )

    @property
    def fields(self) -> tuple[WireField, ...]:
        """Keys, the running sum, and the sum."""
        clear, signed, total = "in the clear", "signed", self._total.dtype()
        running = self._params.ciphertext_bytes + self._params.ciphertext_bytes // 8 + 1024  # serialized sizes differ by a little
        shared = "encrypted; all sites hold the key"
        return (
            WireField("advertise", "key", "bytes", (), 32, signed, "X25519 key of this attempt"),
            WireField("advertise", "binding", "bytes", (), 32, signed, "hash of run, round, attempt, sites, model and terms"),
            WireField("advertise", "signature", "bytes", (), 64, clear, "the site's signature over these and the encryption parameters"),
            WireField("key", "public", "bytes", (), KEY_LIMIT, signed, "public key of this attempt"),
            WireField("key", "boxes.*", "bytes", (), KEY_LIMIT, "sealed to one site", "secret key of this attempt"),
            WireField("key", "signature", "bytes", (), 64, clear, "the first site's signature over public key and holders"),
            WireField("hold", "ready", "bool", (), 8, clear, "that this site has the key"),
            WireField("ring", "ciphertext", "bytes", (), running, shared, "the updates so far, under the initiator's mask"),
            WireField("decrypt", "total", total.name, (self.value.length,), self.value.length * total.itemsize, clear, "the sum"),
        )

    def predicted_bytes(self) -> dict[str, int]:
        """Measured where a field is only bounded: a key pair is made for it."""
        public, secret = self._backend.keygen(self._params)
        key = len(public) + len(self.cohort) * (len(secret) + SEAL_OVERHEAD) + 64
        return {**super().predicted_bytes(), "key": key, "ring": self._params.ciphertext_bytes}

    relays = ("ring",)

    def order(self, round: int) -> tuple[str, ...]:
        """The sites from the round's initiator on; rounds are counted from 1."""
        start = (round - 1) % len(self.cohort)
        return (*self.cohort[start:], *self.cohort[:start])

    # -- server -----------------------------------------------------------------------------------------------------------------------

    def coordinate(self, ctx: ServerContext) -> Coordinator:
        """Hand out the key, send the sum around, have it decrypted. Any loss ends the attempt."""
        adverts = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        _all_there("advertise", adverts.lost, ctx)
        for site in ctx.cohort:
            try:
                self._checked(site, adverts.replies[site], ctx)
            except WireError as error:
                raise RoundAborted(str(error), place=f"round {ctx.round}, stage advertise") from error
        common = {"adverts": adverts.replies}

        maker = ctx.cohort[0]
        made = yield Exchange("key", {maker: {}}, common=common)
        _all_there("key", made.lost, ctx)
        boxes = made.replies[maker].get("boxes", {})
        common |= {name: made.replies[maker].get(name) for name in ("public", "signature")}
        held = yield Exchange("hold", {site: {"box": boxes.get(site)} for site in ctx.cohort}, common=common)
        _all_there("hold", held.lost, ctx)

        order = self.order(ctx.round)
        ring = yield Relay("ring", order)
        for site, reason in ring.lost.items():
            raise RoundLost(f"the ring broke at {site}: {reason}", place=f"round {ctx.round}, stage ring")
        last = yield Exchange("decrypt", {order[0]: {"ciphertext": (ring.body or {}).get("ciphertext")}})
        try:
            if last.lost:
                raise WireError(f"{order[0]} did not decrypt the sum: {last.lost[order[0]]}")
            total = last.replies[order[0]].get("total")
            self._total.check(total)
        except WireError as error:
            raise RoundLost(str(error), place=f"round {ctx.round}, stage decrypt") from error
        return Sum(total.astype(np.int64), ctx.cohort)

    # -- site -------------------------------------------------------------------------------------------------------------------------

    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """The site's side. Its state: its agreement key, then the shared secret key, and of the initiator the seed of the mask."""
        if message.stage == "advertise":
            private, key = agreement_key(ctx.entropy)
            return {"private": private}, self._advert(key, ctx)
        if message.stage == "key" and "private" in state and ctx.site == self.cohort[0]:
            return state, self._make_key(self._checked_adverts(state, message.body, ctx), ctx)
        if message.stage == "hold" and "private" in state:
            return self._hold(state, message.body, ctx)
        if message.stage == "ring" and "secret" in state:
            return self._add(state, message, ctx)
        if message.stage == "decrypt" and "seed" in state:
            return state, self._decrypt(state, message.body, ctx)
        raise WireError(f"stage {message.stage!r:.40} is not due at this site", place=ctx.site)

    def _add(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        order = self.order(ctx.round)
        place = order.index(ctx.site)
        if message.sender != (order[place - 1] if place else SERVER):
            raise WireError(f"the running sum comes from {message.sender!r:.80}, not from the site before", place=ctx.site)
        # Every site can open what leaves now, so each takes part in no other attempt: two sums over two cohorts differ by one update.
        ctx.release(self.cohort)
        own = ctx.contribution().astype(np.float64) / self._unit
        if place:
            received = read(message.body, "ciphertext", bytes)
            encrypted = self._backend.encrypt(self._params, state["public"], own)
            return state, {"ciphertext": self._backend.add(self._params, received, encrypted)}
        seed = ctx.entropy(32)
        masked = self._backend.encrypt(self._params, state["public"], own + mask(seed, len(own)))
        return {**state, "seed": seed}, {"ciphertext": masked}

    def _decrypt(self, state: State, body: Body, ctx: SiteContext) -> Body:
        unmask = self._backend.encrypt(self._params, state["public"], -mask(state["seed"], self.value.length))
        left = self._backend.add(self._params, read(body, "ciphertext", bytes), unmask)
        reals = self._backend.decrypt(self._params, Secret(state["secret"]), left)
        if not np.isfinite(reals).all():
            raise WireError("what was to be decrypted is no sum", place=ctx.site)
        bound = self._total.bound or 0
        return {"total": np.clip(np.rint(reals * self._unit), -bound, bound).astype(self._total.dtype())}

    # -- the shared key ---------------------------------------------------------------------------------------------------------------

    def _advert(self, key: bytes, ctx: SiteContext) -> Body:
        return {"key": key, "binding": ctx.binding, "signature": ctx.sign(self._advert_statement(ctx.site, key, ctx.binding))}

    def _advert_statement(self, site: str, key: bytes, binding: bytes) -> bytes:
        return statement("cyclic-he paper advert", binding, {"site": site, "key": key, "parameters": self._params.sha256})

    def _checked(self, site: str, advert: object, ctx: SiteContext | ServerContext) -> bytes:
        """The X25519 key of an advert that this site signed, for this model, these terms and this attempt."""
        key, binding = read(advert, "key", bytes, length=KEY_BYTES), read(advert, "binding", bytes)
        verify(ctx.roster[site], read(advert, "signature", bytes), self._advert_statement(site, key, binding), site)
        if binding != ctx.binding:
            raise InconsistentModel(f"{site} takes part with another model, other terms, or in another attempt", place="advertise")
        return key

    def _checked_adverts(self, state: State, body: Body, ctx: SiteContext) -> dict[str, bytes]:
        adverts = read(body, "adverts", dict)
        if set(adverts) != set(self.cohort):
            raise WireError("there is not one advert of each site", place=ctx.site)
        keys = {site: self._checked(site, adverts[site], ctx) for site in self.cohort}
        if keys[ctx.site] != public_key(state["private"]):
            raise WireError("this site's own key is not the one advertised", place=ctx.site)
        fewest = max(FEWEST, ctx.policy.min_cohort, ctx.policy.min_honest + 1)
        if len(keys) < fewest:
            raise PolicyRefusal(f"min_cohort, min_honest: a sum over {len(keys)} sites, at least {fewest} are needed", place=ctx.site)
        return keys

    def _make_key(self, keys: Mapping[str, bytes], ctx: SiteContext) -> Body:
        public, secret = self._backend.keygen(self._params)
        plain = secret.reveal()
        secret.wipe()
        boxes = {site: seal(key, plain, _box(ctx.binding, site, public), ctx.entropy) for site, key in keys.items()}
        return {"public": public, "boxes": boxes, "signature": ctx.sign(_key_statement(ctx.binding, public, keys))}

    def _hold(self, state: State, body: Body, ctx: SiteContext) -> tuple[State, Body]:
        keys = self._checked_adverts(state, body, ctx)
        public, maker = read(body, "public", bytes), self.cohort[0]
        verify(ctx.roster[maker], body.get("signature"), _key_statement(ctx.binding, public, keys), maker)
        secret = unseal(state["private"], read(body, "box", bytes), _box(ctx.binding, ctx.site, public))
        return {"secret": secret, "public": public}, {"ready": True}

    # -- what a coalition reads -------------------------------------------------------------------------------------------------------

    def exposed(self, view: Mapping[str, Any]) -> list[Exposure]:
        """With the key of any site: the difference of any two running sums that passed through the coalition's hands.

        Values are in steps of the integers, floating: as exact as the scheme is.
        """
        out = []
        held = [view["states"], *(attempt["states"] for attempt in view.get("attempts", ()))]
        states = [state for group in held for state in group.values() if "secret" in state]
        for attempt in sorted({m.attempt for m in view["messages"]}):
            messages = [m for m in view["messages"] if m.attempt == attempt]
            order = self.order(messages[0].round)
            running = self._running(messages, order, states)
            sums = [m.body["total"].astype(np.float64) for m in messages if m.stage == "decrypt" and m.kind == "reply"]
            out += [Exposure(order, total) for total in sums]
            if sums and len(order) in running:
                running.setdefault(0, running[len(order)] - sums[0])
            cuts = sorted(running)
            out += [Exposure(order[a:b], running[b] - running[a]) for i, a in enumerate(cuts) for b in cuts[i + 1 :]]
        return out

    def _running(self, messages: Sequence[Message], order: Sequence[str], states: Sequence[State]) -> dict[int, Reals]:
        """Number of sites so far -> mask plus their sum, as far as the coalition can decrypt it; 0: the mask of an initiator within."""
        sent = {order.index(m.sender) + 1: m.body["ciphertext"] for m in messages if m.stage == "ring" and m.sender != SERVER}
        found: dict[int, Reals] = {}
        for secret in {state["secret"] for state in states}:
            try:
                opened = {n: self._backend.decrypt(self._params, Secret(secret), text) for n, text in sent.items()}
            except WireError:
                continue  # the key of another attempt
            found = {n: reals * self._unit for n, reals in opened.items()}
            for state in states:
                if found and state["secret"] == secret and "seed" in state:
                    found[0] = mask(state["seed"], self.value.length) * self._unit
        return found


def mask(seed: bytes, length: int) -> npt.NDArray[np.float64]:
    """The initiator's mask, shape ``(length,)``: normal, standard deviation ``MASK_STD``, from a statistical generator as in the code."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big"))).normal(0.0, MASK_STD, length)


def _all_there(stage: str, lost: Mapping[str, str], ctx: ServerContext) -> None:
    for site, reason in lost.items():
        place = f"round {ctx.round}, stage {stage}"
        raise RoundAborted(f"{site} was lost, and this ring needs every site: {reason}", place=place)


def _key_statement(binding: bytes, public: bytes, keys: Mapping[str, bytes]) -> bytes:
    holders = sha256_of([[site, keys[site]] for site in sorted(keys)])
    return statement("cyclic-he paper key", binding, {"public": hashlib.sha256(public).digest(), "holders": holders})


def _box(binding: bytes, recipient: str, public: bytes) -> bytes:
    return statement("cyclic-he paper box", binding, {"recipient": recipient, "public": hashlib.sha256(public).digest()})

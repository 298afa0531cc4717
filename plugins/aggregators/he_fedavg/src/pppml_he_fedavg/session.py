"""The star-shaped homomorphic sum: the sites share one key pair, the server adds their ciphertexts and one site decrypts the sum.

Four exchanges::

    advertise   every site: a fresh X25519 key, signed
    key         one site, the key maker: an HE key pair; the secret key sealed to every site, the public key signed
    encrypt     every site: its integers, encrypted; the server adds them as they arrive
    decrypt     one survivor: the sum, decrypted

The server has no key, so what it receives it cannot read. Every site has the key, so the server and any one site read every update; and
no site can tell whether what it is asked to decrypt is the sum or one update. This is what the scheme is, not a flaw of the code; the sums
that do better are ``secagg-plus`` and ``cyclic-he``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig
from pppml_core.errors import PlanRefused, PolicyRefusal, RoundAborted, RoundLost, TooFewSurvivors, WireError
from pppml_core.federation.identity import SEAL_OVERHEAD, agreement_key, public_key, seal, unseal, verify
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
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER, Exchange
from pppml_he_fedavg.statements import advert, box_context, checked_key, key_statement, names, text

#: A sum over two would be read by either of them: its own part is known to it.
FEWEST = 3
#: Largest key on the wire; real ones have at most a few MiB.
KEY_LIMIT = 1 << 24
#: Rounding to the nearest integer then hides the error of an approximate scheme: half a unit is 12 standard deviations.
LARGEST_ERROR = 1 / 24
#: What a back end's parameters must give: classical security, and the chance that an exact sum is decrypted wrongly.
SECURITY_BITS, LOG2_FAILURE = 128, -64


class HeFedAvgSession(Session):
    """One sum. The server also adds an encryption of zero of its own, so that what is no ciphertext of this key is one site's loss."""

    def __init__(self, value: ValueSpec, cohort: Sequence[str], backend: HEBackend, params: HEParams) -> None:
        super().__init__(value, cohort)
        self._backend, self._params = backend, params

    @property
    def guarantees(self) -> Guarantees:
        """Honest: any site and the server together see everything."""
        return Guarantees(
            sees_sum=(SERVER, "sites"),
            sees_update=(),
            sees_weight=(),
            dropouts=max(0, len(self.cohort) - FEWEST),
            coalition_curious=0,
            coalition_active=0,
            adversary="a server without any site's help, or one site alone, that follows the protocol; not a server that lies",
            assumes=(
                "no site works with the server: every site holds the key, so any one of them and the server read every update",
                "the server sends the sum to be decrypted: a site cannot tell it from a single update",
            ),
        )

    @property
    def fields(self) -> tuple[WireField, ...]:
        """Keys, ciphertexts and the sum."""
        n, clear, signed = len(self.cohort), "in the clear", "signed"
        total = self._summed(n).dtype()
        return (
            WireField("advertise", "key", "bytes", (), 32, signed, "X25519 key of this attempt"),
            WireField("advertise", "binding", "bytes", (), 32, signed, "hash of run, round, attempt, sites, model and terms"),
            WireField("advertise", "parameters", "bytes", (), 32, signed, "hash of the parameters of homomorphic encryption"),
            WireField("advertise", "signature", "bytes", (), 64, clear, "the site's signature over these"),
            WireField("key", "public", "bytes", (), KEY_LIMIT, signed, "public key of this attempt"),
            WireField("key", "boxes.*", "bytes", (), KEY_LIMIT, "sealed to one site", "secret key of this attempt"),
            WireField("key", "signature", "bytes", (), 64, clear, "the key maker's signature over public key and holders"),
            WireField("encrypt", "ciphertext", "bytes", (), self._largest, "encrypted; all sites hold the key", "the site's update"),
            WireField("decrypt", "total", total.name, (self.value.length,), self.value.length * total.itemsize, clear, "the sum"),
        )

    @property
    def _largest(self) -> int:
        # The planned size is measured; serialized ciphertexts differ by a little.
        return self._params.ciphertext_bytes + self._params.ciphertext_bytes // 8 + 1024

    def predicted_bytes(self) -> dict[str, int]:
        """Measured where a field is only bounded: a key pair is made for it."""
        public, secret = self._backend.keygen(self._params)
        sizes = super().predicted_bytes()
        key = len(public) + len(self.cohort) * (len(secret) + SEAL_OVERHEAD) + 64
        return {**sizes, "key": key, "encrypt": self._params.ciphertext_bytes}

    def _summed(self, sites: int) -> ValueSpec:
        return ValueSpec(self.value.length, "integer", self.value.sum_bound(sites))

    # -- server -----------------------------------------------------------------------------------------------------------------------

    def coordinate(self, ctx: ServerContext) -> Coordinator:
        """Four stages. The key maker, and then who decrypts, is the first site that answers."""
        place = f"round {ctx.round}"
        outcome = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        adverts = {}
        for site in outcome.answered:
            try:
                checked_key(ctx, site, outcome.replies[site], self._params.sha256)
                adverts[site] = outcome.replies[site]
            except WireError:
                continue  # forged on the way: as if it had not answered
        if len(adverts) < FEWEST:
            raise TooFewSurvivors(f"{len(adverts)} sites advertised, at least {FEWEST} are needed", place=f"{place}, stage advertise")

        made: Body = {}
        for maker in adverts:
            outcome = yield Exchange("key", {maker: {"adverts": adverts}})
            if maker in outcome.replies:
                made = {"maker": maker, "adverts": adverts, **outcome.replies[maker]}
                break
        boxes = made.get("boxes", {})
        if set(boxes) != set(adverts):
            raise RoundAborted("no site made a key for all", place=f"{place}, stage key")

        try:
            zero = np.zeros(self._params.length, np.uint64 if self._params.arithmetic == "exact" else np.float64)
            total = self._backend.encrypt(self._params, made["public"], zero)
        except WireError as error:
            raise RoundAborted(f"{made['maker']} made no usable key: {error}", place=f"{place}, stage key") from error

        def add(site: str, body: Body) -> None:
            nonlocal total
            total = self._backend.add(self._params, total, text(body, "ciphertext"))

        common = {name: made[name] for name in ("maker", "adverts", "public", "signature")}
        outcome = yield Exchange("encrypt", {site: {"box": boxes[site]} for site in adverts}, add, common=common)
        alive = outcome.answered
        if len(alive) < FEWEST:
            reason = next(iter(outcome.lost.values()))
            raise TooFewSurvivors(f"{len(alive)} sites gave an update, at least {FEWEST} are needed; one other: {reason}", place=place)

        said: list[npt.NDArray[Any]] = []
        spec = self._summed(len(ctx.cohort))

        def take(site: str, body: Body) -> None:
            spec.check(body.get("total"))
            said.append(body["total"])

        reason = ""
        for site in alive:
            outcome = yield Exchange("decrypt", {site: {"total": total, "sites": list(alive)}}, take)
            if said:
                return Sum(said[0].astype(np.int64), alive)
            reason = outcome.lost[site]
        raise RoundLost(f"no survivor decrypted the sum; the last one: {reason}", place=f"{place}, stage decrypt")

    # -- site -------------------------------------------------------------------------------------------------------------------------

    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """The site's side. Its state: its agreement key; then the HE secret key and the sites that hold it, until the attempt ends, for
        every site must be ready to decrypt.
        """
        if message.stage == "advertise":
            private, key = agreement_key(ctx.entropy)
            return {"private": private}, advert(ctx, key, self._params.sha256)
        if message.stage == "key" and "private" in state:
            return state, self._make_key(self._checked_adverts(state, message.body, ctx), ctx)
        if message.stage == "encrypt" and "private" in state:
            return self._encrypt(state, message.body, ctx)
        if message.stage == "decrypt" and "secret" in state:
            return state, self._decrypt(state, message.body, ctx)
        raise WireError(f"stage {message.stage!r:.40} is not due at this site", place=ctx.site)

    def _checked_adverts(self, state: State, body: Body, ctx: SiteContext) -> dict[str, bytes]:
        """Every site's agreement key, each signed by the identity pinned here, this site's own among them."""
        adverts = body.get("adverts")
        if not isinstance(adverts, Mapping):
            raise WireError("there are no adverts", place=ctx.site)
        keys = {site: checked_key(ctx, site, adverts[site], self._params.sha256) for site in adverts}
        if keys.get(ctx.site) != public_key(state["private"]):
            raise WireError("this site's own key is not among those advertised", place=ctx.site)
        self._check_size(len(keys), ctx)
        return keys

    def _check_size(self, sites: int, ctx: SiteContext) -> None:
        fewest = max(FEWEST, ctx.policy.min_cohort, ctx.policy.min_honest + 1)
        if sites < fewest:
            reason = f"min_cohort, min_honest: a sum over {sites} sites, at least {fewest} are needed (whoever decrypts knows its own part)"
            raise PolicyRefusal(reason, place=ctx.site)

    def _make_key(self, keys: Mapping[str, bytes], ctx: SiteContext) -> Body:
        public, secret = self._backend.keygen(self._params)
        plain = secret.reveal()
        secret.wipe()
        boxes = {site: seal(key, plain, box_context(ctx.binding, ctx.site, site, public), ctx.entropy) for site, key in keys.items()}
        signature = ctx.sign(key_statement(ctx.binding, ctx.site, public, self._params.sha256, keys))
        return {"public": public, "boxes": boxes, "signature": signature}

    def _encrypt(self, state: State, body: Body, ctx: SiteContext) -> tuple[State, Body]:
        keys = self._checked_adverts(state, body, ctx)
        maker, public, box = body.get("maker"), text(body, "public"), text(body, "box")
        if not isinstance(maker, str) or maker not in keys:
            raise WireError("the key maker is none of the sites that advertised", place=ctx.site)
        verify(ctx.roster[maker], body.get("signature"), key_statement(ctx.binding, maker, public, self._params.sha256, keys), maker)
        secret = unseal(state["private"], box, box_context(ctx.binding, maker, ctx.site, public))
        integers = ctx.contribution().astype(np.int64)
        plain: npt.NDArray[Any]
        plain = self._params.residues(integers) if self._params.arithmetic == "exact" else integers.astype(np.float64)
        ciphertext = self._backend.encrypt(self._params, public, plain)
        return {"secret": secret, "holders": sorted(keys)}, {"ciphertext": ciphertext}

    def _decrypt(self, state: State, body: Body, ctx: SiteContext) -> Body:
        sites, ciphertext = names(body, "sites"), text(body, "total")
        if ctx.site not in sites or not set(sites) <= set(state["holders"]):
            raise WireError("the sum must be over sites that advertised, this one among them", place=ctx.site)
        self._check_size(len(sites), ctx)
        total = self._opened(state["secret"], ciphertext)
        bound = self._summed(len(sites)).bound or 0
        if max(int(total.max(initial=0)), -int(total.min(initial=0))) > bound:
            raise WireError("what was to be decrypted is not a sum over these sites", place=ctx.site)
        ctx.release(sites)
        return {"total": total.astype(self._summed(len(self.cohort)).dtype())}

    def _opened(self, secret: bytes, ciphertext: bytes) -> npt.NDArray[np.int64]:
        plain = self._backend.decrypt(self._params, Secret(secret), ciphertext)
        if self._params.arithmetic == "exact":
            return self._params.integers(plain)
        if not np.isfinite(plain).all() or np.abs(plain).max(initial=0) >= 2**62:
            raise WireError("what was to be decrypted is not a sum", place="decrypt")
        rounded: npt.NDArray[np.int64] = np.rint(plain).astype(np.int64)
        return rounded

    # -- what a coalition reads -------------------------------------------------------------------------------------------------------

    def exposed(self, view: Mapping[str, Any]) -> list[Exposure]:
        """The sum as it was sent; with any site's key also every ciphertext that is in the view."""
        replies = {(m.attempt, m.sender): m.body for m in view["messages"] if m.stage == "decrypt" and m.kind == "reply"}
        asked = [m for m in view["messages"] if m.stage == "decrypt" and m.kind == "session"]
        answered = [(m, replies[m.attempt, m.recipient]) for m in asked if (m.attempt, m.recipient) in replies]
        out = [Exposure(tuple(m.body["sites"]), reply["total"]) for m, reply in answered]
        sealed = [((m.sender,), m.body["ciphertext"]) for m in view["messages"] if m.stage == "encrypt" and m.kind == "reply"]
        sealed += [(tuple(m.body["sites"]), m.body["total"]) for m in asked]
        held = [view["states"], *(attempt["states"] for attempt in view.get("attempts", ()))]
        for secret in {state["secret"] for states in held for state in states.values() if "secret" in state}:
            for sites, ciphertext in sealed:
                try:
                    out.append(Exposure(sites, self._opened(secret, ciphertext)))
                except WireError:
                    continue  # of another attempt's key
        return out


class HeFedAvg(Aggregator):
    """The aggregator of that name."""

    def __init__(self, config: ComponentConfig, *, backend: HEBackend) -> None:
        super().__init__(config)
        self._backend = backend
        self._planned: dict[tuple[ValueSpec, int], HEParams] = {}

    def misfits(self, value: ValueSpec, cohort: Sequence[str]) -> list[str]:
        """Bounded integers, three sites or more, and a back end whose sums come out exactly."""
        try:
            self.plan(value, cohort)
        except PlanRefused as refused:
            return list(refused.misfits)
        return []

    def plan(self, value: ValueSpec, cohort: Sequence[str]) -> HeFedAvgSession:
        """The session. Raises PlanRefused with every reason there is."""
        reasons = super().misfits(value, cohort)
        if len(cohort) < FEWEST:
            reasons.append(f"aggregator: he-fedavg needs at least {FEWEST} sites, since whoever decrypts knows its own part; add sites")
        if value.kind == "integer" and value.bound is None:
            reasons.append("aggregator: he-fedavg needs bounded integers; use `encoding: fixed`")
        if reasons:
            raise PlanRefused(reasons)
        params = self._parameters(value, len(cohort) + 1)  # the server's encryption of zero is one more
        place = f"aggregator.backend: {params.backend} {params.scheme}"
        if params.security_bits < SECURITY_BITS:
            reasons.append(f"{place}: its parameters give {params.security_bits} bits of security, at least {SECURITY_BITS} are needed")
        error, failure = params.error_std, params.log2_failure
        if params.arithmetic == "approximate" and not (error is not None and error <= LARGEST_ERROR):
            reason = f"the error of a sum has a standard deviation of {error} units, at most 1/24 can be rounded away"
            reasons.append(f"{place}: {reason}; raise the scale or use `scheme: bfv`")
        if params.details.get("preset") == "paper":
            reasons.append(f"{place}: preset paper is for `cyclic-he` with `variant: paper` only; leave `preset` out")
        if params.arithmetic == "exact" and not (failure is not None and failure <= LOG2_FAILURE):
            reasons.append(f"{place}: a sum may be decrypted wrongly with a chance above 2^{LOG2_FAILURE}; use larger parameters")
        if reasons:
            raise PlanRefused(reasons)
        return HeFedAvgSession(value, cohort, self._backend, params)

    def _parameters(self, value: ValueSpec, additions: int) -> HEParams:
        """Planned once: a session is planned several times a round."""
        if (value, additions) not in self._planned:
            self._planned[value, additions] = self._backend.plan(value, additions)
        return self._planned[value, additions]

"""The star-shaped homomorphic sum: the sites share one key pair, the server adds their ciphertexts and one site decrypts the sum.

Five exchanges::

    advertise   every site: a fresh X25519 key, signed
    key         one site, the key maker: an HE key pair; the secret key sealed to every site, the public key signed
    encrypt     every site: its integers, encrypted; the server adds them as they arrive
    agree       every survivor: marks the sum over the survivors as released, and signs the list
    decrypt     one survivor: the sum, decrypted, once enough of them have signed

A site that has signed takes part in no other sum of the round. At least three have signed each sum that is decrypted; so in whatever way
several sums are added and subtracted, the three that signed the first of them stay together, even where the server stops at a bad moment.

The server has no key, so what it receives it cannot read. Every site has the key, so the server and any one site read every update; and
no site can tell whether what it is asked to decrypt is the sum or one update. This is what the scheme is, not a flaw of the code; the sums
that do better are ``secagg-plus`` and ``cyclic-he``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PolicyRefusal, RoundAborted, RoundLost, TooFewSurvivors, WireError
from pppml_core.federation.identity import SEAL_OVERHEAD, agreement_key, public_key, seal, unseal, verify
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
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER, Exchange
from pppml_he_fedavg.statements import Advert, advert, agreement, box_context, checked, key_statement, names, text

#: A sum over two would be read by either of them: its own part is known to it.
FEWEST = 3
#: Largest key on the wire; real ones have at most a few MiB.
KEY_LIMIT = 1 << 24


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
            WireField("advertise", "fewest", "int", (), 8, signed, "fewest sites of a sum this site takes part in, by its policy"),
            WireField("advertise", "binding", "bytes", (), 32, signed, "hash of run, round, attempt, sites, model and terms"),
            WireField("advertise", "parameters", "bytes", (), 32, signed, "hash of the parameters of homomorphic encryption"),
            WireField("advertise", "signature", "bytes", (), 64, clear, "the site's signature over these"),
            WireField("key", "public", "bytes", (), KEY_LIMIT, signed, "public key of this attempt"),
            WireField("key", "boxes.*", "bytes", (), KEY_LIMIT, "sealed to one site", "secret key of this attempt"),
            WireField("key", "signature", "bytes", (), 64, clear, "the key maker's signature over public key and holders"),
            WireField("encrypt", "ciphertext", "bytes", (), self._largest, "encrypted; all sites hold the key", "the site's update"),
            WireField("agree", "signature", "bytes", (), 64, clear, "that the site takes part in no other sum of this round"),
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
        """Five stages. The key maker, and then who decrypts, is the first site that answers."""
        place = f"round {ctx.round}"
        outcome = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        said, adverts = {}, {}
        for site in outcome.answered:
            try:
                said[site] = checked(ctx, site, outcome.replies[site], self._params.sha256)
                adverts[site] = outcome.replies[site]
            except WireError:
                continue  # forged on the way: as if it had not answered
        _enough("advertised", adverts, said, f"{place}, stage advertise")

        made: Body = {}
        boxes: Mapping[str, Any] = {}
        for maker in adverts:
            outcome = yield Exchange("key", {maker: {"adverts": adverts}})
            answer = outcome.replies.get(maker, {})
            try:
                key = {name: text(answer, name) for name in ("public", "signature")}
            except WireError:
                continue  # no key, or a part of one: the next site makes it
            if set(boxes := answer.get("boxes", {})) == set(adverts):
                made = {"maker": maker, "adverts": adverts, **key}
                break
        if not made:
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
        _enough("gave an update", alive, said, f"{place}, stage encrypt", outcome.lost)

        outcome = yield Exchange("agree", {site: {"sites": list(alive)} for site in alive})
        signatures = {}
        for site in outcome.answered:
            try:
                verify(ctx.roster[site], outcome.replies[site].get("signature"), agreement(ctx.binding, site, alive), site)
                signatures[site] = outcome.replies[site]["signature"]
            except WireError:
                continue
        if len(signatures) < FEWEST:
            raise RoundLost(f"{len(signatures)} sites agreed to decrypt, at least {FEWEST} are needed", place=f"{place}, stage agree")

        decrypted: list[npt.NDArray[Any]] = []
        spec = self._summed(len(ctx.cohort))

        def take(site: str, body: Body) -> None:
            spec.check(body.get("total"))
            decrypted.append(body["total"])

        reason = ""
        for site in signatures:
            outcome = yield Exchange("decrypt", {site: {"total": total, "signatures": signatures}}, take)
            if decrypted:
                return Sum(decrypted[0].astype(np.int64), alive)
            reason = outcome.lost[site]
        raise RoundLost(f"no survivor decrypted the sum; the last one: {reason}", place=f"{place}, stage decrypt")

    # -- site -------------------------------------------------------------------------------------------------------------------------

    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """The site's side. Its state: its agreement key; then the HE secret key and the sites that hold it, until the attempt ends, for
        every site must be ready to decrypt.
        """
        if message.stage == "advertise":
            private, key = agreement_key(ctx.entropy)
            mine = Advert(key, max(FEWEST, ctx.policy.min_cohort, ctx.policy.min_honest + 1))
            return {"private": private}, advert(ctx, mine, self._params.sha256)
        if message.stage == "key" and "private" in state:
            return state, self._make_key(self._checked_adverts(state, message.body, ctx), ctx)
        if message.stage == "encrypt" and "private" in state:
            return self._encrypt(state, message.body, ctx)
        if message.stage == "agree" and "secret" in state:
            return self._agree(state, message.body, ctx)
        if message.stage == "decrypt" and "agreed" in state:
            return state, self._decrypt(state, message.body, ctx)
        raise WireError(f"stage {message.stage!r:.40} is not due at this site", place=ctx.site)

    def _checked_adverts(self, state: State, body: Body, ctx: SiteContext) -> dict[str, Advert]:
        """Every site's advert, signed by the identity pinned here, this site's own among them, and enough of them for each."""
        adverts = body.get("adverts")
        if not isinstance(adverts, Mapping):
            raise WireError("there are no adverts", place=ctx.site)
        found = {site: checked(ctx, site, adverts[site], self._params.sha256) for site in adverts}
        if ctx.site not in found or found[ctx.site].key != public_key(state["private"]):
            raise WireError("this site's own key is not among those advertised", place=ctx.site)
        _check_size(found, {site: said.fewest for site, said in found.items()}, ctx)
        return found

    def _make_key(self, adverts: Mapping[str, Advert], ctx: SiteContext) -> Body:
        public, secret = self._backend.keygen(self._params)
        plain = secret.reveal()
        secret.wipe()
        boxes = {site: seal(to.key, plain, box_context(ctx.binding, ctx.site, site, public), ctx.entropy) for site, to in adverts.items()}
        signature = ctx.sign(key_statement(ctx.binding, ctx.site, public, self._params.sha256, adverts))
        return {"public": public, "boxes": boxes, "signature": signature}

    def _encrypt(self, state: State, body: Body, ctx: SiteContext) -> tuple[State, Body]:
        adverts = self._checked_adverts(state, body, ctx)
        maker, public, box = body.get("maker"), text(body, "public"), text(body, "box")
        if not isinstance(maker, str) or maker not in adverts:
            raise WireError("the key maker is none of the sites that advertised", place=ctx.site)
        verify(ctx.roster[maker], body.get("signature"), key_statement(ctx.binding, maker, public, self._params.sha256, adverts), maker)
        secret = unseal(state["private"], box, box_context(ctx.binding, maker, ctx.site, public))
        integers = ctx.contribution().astype(np.int64)
        plain: npt.NDArray[Any]
        plain = self._params.residues(integers) if self._params.arithmetic == "exact" else integers.astype(np.float64)
        ciphertext = self._backend.encrypt(self._params, public, plain)
        return {"secret": secret, "fewest": {site: said.fewest for site, said in adverts.items()}}, {"ciphertext": ciphertext}

    def _agree(self, state: State, body: Body, ctx: SiteContext) -> tuple[State, Body]:
        sites = names(body, "sites")
        if ctx.site not in sites or not set(sites) <= set(state["fewest"]):
            raise WireError("the sum must be over sites that advertised, this one among them", place=ctx.site)
        _check_size(sites, state["fewest"], ctx)
        ctx.release(sites)
        return {**state, "agreed": list(sites)}, {"signature": ctx.sign(agreement(ctx.binding, ctx.site, sites))}

    def _decrypt(self, state: State, body: Body, ctx: SiteContext) -> Body:
        """Only the sum this site agreed to, and only where enough others will take part in no other either."""
        sites, ciphertext, signatures = state["agreed"], text(body, "total"), body.get("signatures")
        if not isinstance(signatures, Mapping) or not set(signatures) <= set(sites):
            raise WireError("there are no signatures of the sites of the sum", place=ctx.site)
        for site, signature in signatures.items():
            verify(ctx.roster[site], signature, agreement(ctx.binding, site, sites), site)
        if len({ctx.site, *signatures}) < FEWEST:
            raise PolicyRefusal(f"at least {FEWEST} sites must have agreed to a sum before it is decrypted", place=ctx.site)
        total = self._opened(state["secret"], ciphertext)
        bound = self._summed(len(sites)).bound or 0
        if max(int(total.max(initial=0)), -int(total.min(initial=0))) > bound:
            raise WireError("what was to be decrypted is not a sum over these sites", place=ctx.site)
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
        summed = {(m.attempt, m.recipient): tuple(m.body["sites"]) for m in view["messages"] if m.stage == "agree" and m.kind == "session"}
        decrypt = [m for m in view["messages"] if m.stage == "decrypt"]
        out = [Exposure(summed[m.attempt, m.sender], m.body["total"]) for m in decrypt if m.kind == "reply"]
        sealed = [((m.sender,), m.body["ciphertext"]) for m in view["messages"] if m.stage == "encrypt" and m.kind == "reply"]
        sealed += [(summed[m.attempt, m.recipient], m.body["total"]) for m in decrypt if m.kind == "session"]
        held = [view["states"], *(attempt["states"] for attempt in view.get("attempts", ()))]
        for secret in {state["secret"] for states in held for state in states.values() if "secret" in state}:
            for sites, ciphertext in sealed:
                try:
                    out.append(Exposure(sites, self._opened(secret, ciphertext)))
                except WireError:
                    continue  # of another attempt's key
        return out


def _largest_demand(sites: Collection[str], fewest: Mapping[str, int]) -> int:
    """The fewest sites of a sum that satisfy each of these sites."""
    return max(FEWEST, *(fewest[site] for site in sites)) if sites else FEWEST


def _check_size(sites: Collection[str], fewest: Mapping[str, int], ctx: SiteContext) -> None:
    demanded = _largest_demand(sites, fewest)
    if len(sites) < demanded:
        reason = f"min_cohort, min_honest: a sum over {len(sites)} sites, at least {demanded} are demanded by one of them"
        raise PolicyRefusal(reason, place=ctx.site, hint="whoever decrypts knows its own part")


def _enough(did: str, sites: Collection[str], said: Mapping[str, Advert], place: str, lost: Mapping[str, str] | None = None) -> None:
    demanded = _largest_demand(sites, {site: mine.fewest for site, mine in said.items()})
    if len(sites) < demanded:
        other = f"; one other: {next(iter(lost.values()))}" if lost else ""
        raise TooFewSurvivors(f"{len(sites)} sites {did}, at least {demanded} are demanded{other}", place=place)

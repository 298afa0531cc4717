"""A site's part in the sum, one method a stage: advertise, check everybody, add to each ring, agree (initiators), confirm,
release.

The state is plain data: ``hop`` (X25519 private key), ``secret`` (an initiator's), ``agreed`` (see :func:`.adverts.check_all`), ``seed`` of
the self-mask, ``shares`` (seeds of all shares but the last ring's), ``box-1`` ... (key of the last box sent), ``links`` (the signed link
of each hop sent), ``before`` and ``seen`` (hash received, and sites before this one, in the first ring), ``without`` (sites left out),
``closing`` (an initiator's ciphertext to decrypt), ``confirmed`` (see :func:`confirmation`). What is no longer needed is forgotten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PolicyRefusal, WireError
from pppml_core.federation.identity import agreement_key, seal, statement, verify
from pppml_core.interfaces.aggregation import SiteContext
from pppml_core.randomness import Secret
from pppml_core.wire.codec import sha256_of
from pppml_core.wire.messages import Body
from pppml_cyclic_he import adverts, uniform
from pppml_cyclic_he.hops import HASH_BYTES, NOTHING, Hop, check_chain, hops_of
from pppml_cyclic_he.setting import Setting, read, read_names

State = dict[str, Any]
Step = tuple[State, dict[str, Any]]

#: noise budget, in bits, that must be left in what is about to be decrypted.
LEAST_BUDGET = 4.0
#: farthest that a decrypted number may lie from an integer: nine standard deviations of the largest planned error, 1/24.
FARTHEST = 0.375


def forget(state: Mapping[str, Any], *names: str) -> State:
    """The state without what has served. Nothing is forgotten in any other way; a curious party is one that does not call this."""
    return {name: value for name, value in state.items() if name not in names}


def confirmation(binding: bytes, confirmed: Mapping[str, Any]) -> bytes:
    """What every member signs before anything is released: ``without`` (sites left out), ``chains`` (the hash of all rings' chains),
    ``adverts`` (the hash of all adverts). A site that was told another story than this one has not signed it.
    """
    return statement("cyclic-he confirm", binding, confirmed)


def box_of(ring: int) -> str:
    """The key of the box that a site sent in a ring, counted from 0."""
    return f"box-{ring + 1}"


class Site:
    """One message at one site: each method takes the message's body and returns the new state and the answer."""

    def __init__(self, setting: Setting, state: Mapping[str, Any], ctx: SiteContext) -> None:
        self._setting, self._state, self._ctx, self._rings = setting, dict(state), ctx, setting.rings
        self._own_ring = self._rings.ring_of(ctx.site)
        if sorted(ctx.cohort) != list(self._rings.order):
            raise WireError("the session is not of this cohort", place=ctx.site)

    # -- 1: advertise -----------------------------------------------------------------------------------------------------------------

    def advertise(self) -> Step:
        """Fresh keys of this attempt."""
        self._rings.check(self._ctx.policy)
        private, hop = agreement_key(self._ctx.entropy)
        state: State = {"hop": private}
        public = b""
        if self._own_ring is not None:
            public, secret = self._setting.backend.keygen(self._setting.params)
            state["secret"] = secret.reveal()
            secret.wipe()
        advert = adverts.make(self._setting, self._ctx.site, self._ctx.binding, self._ctx.sign, hop, public)
        return state, advert

    def keys(self, body: Body) -> Step:
        """Check everybody's adverts, train, and draw what hides the contribution."""
        agreed = adverts.check_all(self._setting, body, self._ctx.binding, self._ctx.roster)
        self._ctx.contribution()  # trained here, where all sites work at once; in a ring they would wait for each other
        state = {**self._state, "agreed": agreed, "links": [], "without": []}
        if self._setting.exact:
            state["seed"] = self._ctx.entropy(uniform.SEED_BYTES)
            state["shares"] = [self._ctx.entropy(uniform.SEED_BYTES) for _ in range(self._rings.count - 1)]
        return state, {}

    # -- 2: relay ---------------------------------------------------------------------------------------------------------------------

    def ring(self, ring: int, body: Body) -> Step:
        """Add this site's share of one ring to what came, and send it on."""
        agreed, links = self._held("agreed"), self._held("links")
        if len(links) != ring:
            raise PolicyRefusal("rings are walked one after another, each site once in each")
        without = self._left_out(body)
        path = self._rings.path(ring, without)
        so_far = path[: path.index(self._ctx.site) + 1]
        chain, hops = self._chain(ring, body, so_far)
        received = hops[-1].receive(self._held("hop"), body) if hops else None

        backend, params = self._setting.backend, self._setting.params
        ciphertext = backend.encrypt(params, agreed["publics"][ring], self._share(ring))
        if received is not None:
            ciphertext = backend.add(params, received, ciphertext)
        if not self._setting.exact:
            # Without self-masks a ciphertext is all that its key holder needs: no second attempt with another set, ever.
            self._ctx.release(self._rings.order)

        following = self._rings.next(ring, self._ctx.site, without)
        before = hops[-1].after if hops else NOTHING
        sent = Hop(agreed["digest"], ring, self._ctx.site, following, before, hashlib.sha256(ciphertext).digest())
        box, key = sent.close(ciphertext, self._ctx.entropy)
        link, handed = self._sent(sent, key)
        state = forget({**self._state, "links": [*links, link], "without": list(without), box_of(ring): key}, box_of(ring - 1))
        if ring == 0:
            state |= {"before": before, "seen": list(so_far[:-1])}
        if ring == self._rings.count - 1:
            state = forget(state, "shares", *(["hop"] if self._own_ring is None else []))
        return state, {"box": box, "key": handed, "chain": chain + link, "without": list(without)}

    def reseal(self, body: Body) -> Step:
        """The site after this one was never handed its box: hand it to the one after that. The same ciphertext, once."""
        agreed, links = self._held("agreed"), self._held("links")
        if box_of(0) not in self._state:
            raise PolicyRefusal("a site is bridged only while the first ring is walked, and not two in a row")
        before, without = self._held("without"), read_names(body, "without")
        bridged = self._rings.next(0, self._ctx.site, before)
        if set(without) != {*before, bridged}:
            raise PolicyRefusal("only the site after this one can be bridged by it")
        self._check_left_out(without)
        after = self._rings.next(0, self._ctx.site, without)
        hop = Hop(agreed["digest"], 0, self._ctx.site, after, self._held("before"), links[0][:HASH_BYTES])
        link, handed = self._sent(hop, self._held(box_of(0)))
        return {**forget(self._state, box_of(0)), "links": [link], "without": list(without)}, {"key": handed, "link": link}

    # -- 3: agree ---------------------------------------------------------------------------------------------------------------------

    def agree(self, body: Body) -> Step:
        """An initiator's ring has come back: check its whole chain and sign who is in it. Nothing is decrypted."""
        ring = self._own_ring
        if ring is None or len(self._held("links")) != self._rings.count:
            raise PolicyRefusal("only an initiator that has added to every ring closes its own")
        without = self._left_out(body)
        chain, hops = self._whole_chain(ring, body, without)
        closing = hops[-1].receive(self._held("hop"), body)
        budget = self._setting.backend.noise_budget(self._setting.params, Secret(self._held("secret")), closing)
        if budget is not None and budget < LEAST_BUDGET:
            raise WireError(f"{budget:.1f} bits of noise budget are left; the sum might not decrypt", place=f"ring {ring + 1}")
        state = {**forget(self._state, "hop", box_of(self._rings.count - 1)), "closing": closing, "without": list(without)}
        return state, {"signature": self._ctx.sign(self._list(ring, without, chain))}

    # -- 4: confirm -------------------------------------------------------------------------------------------------------------------

    def confirm(self, body: Body) -> Step:
        """All rings list the same sites, this one among them: sign that. Keys of boxes are forgotten, so nobody is bridged after it.

        A site that bridged another one signs no list with that one in it: with both its hop and the hop past it, and the seed of its
        self-mask, an initiator would read its update.
        """
        without, starters = self._left_out(body), self._rings.initiators
        chains = read(body, "chains", list, length=self._rings.count)
        signatures = read(body, "signatures", list, length=self._rings.count)
        for ring, starter in enumerate(starters):
            chain, _ = self._whole_chain(ring, {"chain": chains[ring]}, without)
            verify(self._ctx.roster[starter], signatures[ring], self._list(ring, without, chain), starter)
        confirmed = {"without": list(without), "chains": sha256_of(chains), "adverts": self._held("agreed")["digest"]}
        served = set(self._state) - {"agreed", "secret", "closing", "seed"}
        state = {**forget(self._state, *served), "confirmed": confirmed}
        return state, {"signature": self._ctx.sign(confirmation(self._ctx.binding, confirmed))}

    # -- 5: release -------------------------------------------------------------------------------------------------------------------

    def release(self, body: Body) -> Step:
        """Every member has confirmed the very same thing as this one: give up the self-mask; an initiator decrypts, once."""
        confirmed, signatures = self._held("confirmed"), read(body, "signatures", dict)
        members = [site for site in self._rings.order if site not in confirmed["without"]]
        agreed_on = confirmation(self._ctx.binding, confirmed)
        for site in members:
            verify(self._ctx.roster[site], signatures.get(site), agreed_on, site)

        self._ctx.release(members)
        out: dict[str, Any] = {}
        if self._own_ring is not None:
            out["sum"] = self._for_server("sum", self._decrypted().tobytes())
        if self._setting.exact:
            out["seed"] = self._for_server("seed", self._held("seed"))
        return forget(self._state, *self._state), out

    # -- parts ------------------------------------------------------------------------------------------------------------------------

    def _held(self, name: str) -> Any:
        if name not in self._state:
            raise WireError("this is not the stage that comes next", place=self._ctx.site)
        return self._state[name]

    def _share(self, ring: int) -> npt.NDArray[Any]:
        """What this site adds to a ring: integers as floats, or a uniform share of integers plus self-mask."""
        integers: npt.NDArray[Any] = self._ctx.contribution()
        setting = self._setting
        if not setting.exact:
            return integers.astype(np.float64)
        length, modulus = setting.params.length, setting.modulus
        if ring < self._rings.count - 1:
            return uniform.residues(self._held("shares")[ring], length, modulus)
        share = setting.params.residues(integers)
        uniform.add(share, uniform.residues(self._held("seed"), length, modulus), modulus)
        for seed in self._held("shares"):
            uniform.subtract(share, uniform.residues(seed, length, modulus), modulus)
        return share

    def _decrypted(self) -> npt.NDArray[Any]:
        """The ring's sum: residues, or nearest integers, so that the output says nothing about the noise."""
        setting = self._setting
        values: npt.NDArray[Any] = setting.backend.decrypt(setting.params, Secret(self._held("secret")), self._held("closing"))
        if setting.exact:
            return values.astype(setting.sum_dtype)
        nearest: npt.NDArray[Any] = np.rint(values)
        largest = setting.value.sum_bound(len(self._rings.order)) or 0
        if not (np.abs(values - nearest) <= FARTHEST).all() or (np.abs(nearest) > largest).any():
            raise WireError("the decrypted sum is not near integers of its range", place=self._ctx.site)
        return nearest.astype(setting.sum_dtype)

    def _left_out(self, body: Body) -> tuple[str, ...]:
        """The sites left out as the server says, if this site's rules and what it has seen allow it."""
        without = read_names(body, "without")
        self._check_left_out(without)
        if not set(self._held("without")) <= set(without):
            raise PolicyRefusal("a site that was left out is in it again")
        return without

    def _check_left_out(self, without: tuple[str, ...]) -> None:
        if self._ctx.site in without:
            raise PolicyRefusal("this site is left out")
        if without and not self._setting.exact:
            raise PolicyRefusal("without self-masks no site is ever left out")
        if contributed := set(without) & set(self._state.get("seen", ())):
            raise PolicyRefusal(f"{min(contributed)} has contributed and cannot be left out")
        self._rings.check(self._ctx.policy, without)

    def _chain(self, ring: int, body: Body, path: tuple[str, ...]) -> tuple[bytes, list[Hop]]:
        """The chain of a message, verified along ``path``, and its hops."""
        chain = read(body, "chain", bytes)
        hops = hops_of(self._held("agreed")["digest"], ring, chain, path)
        check_chain(self._ctx.roster, self._ctx.binding, hops, chain)
        return chain, hops

    def _whole_chain(self, ring: int, body: Body, without: tuple[str, ...]) -> tuple[bytes, list[Hop]]:
        """The chain of a closed ring: one link of each site, this one's own among them, which it signed once."""
        path = self._rings.path(ring, without)
        return self._chain(ring, body, (*path, path[0]))

    def _sent(self, hop: Hop, key: bytes) -> tuple[bytes, bytes]:
        """(signed link, key of the box sealed to the next site)."""
        recipient = self._held("agreed")["hops"][hop.recipient]
        return hop.sign(self._ctx.binding, self._ctx.sign), hop.hand(key, recipient, self._ctx.entropy)

    def _list(self, ring: int, without: tuple[str, ...], chain: bytes) -> bytes:
        """What the initiator of a ring signs when it is closed: exactly these sites are in it, along this chain."""
        sites = [site for site in self._rings.order if site not in without]
        body = {"ring": ring, "sites": sites, "chain": sha256_of(chain), "adverts": self._held("agreed")["digest"]}
        return statement("cyclic-he list", self._ctx.binding, body)

    def _for_server(self, what: str, plain: bytes) -> bytes:
        agreed = self._held("agreed")
        return seal(agreed["server"], plain, released_place(agreed["digest"], what, self._ctx.site), self._ctx.entropy)


def released_place(digest: bytes, what: str, site: str) -> bytes:
    """The context of what a site seals to the server: ``sum`` or ``seed``."""
    return sha256_of(["cyclic-he", "released", what, digest, site])

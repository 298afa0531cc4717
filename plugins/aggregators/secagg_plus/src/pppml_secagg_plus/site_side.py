"""The site's side: what a site answers in each exchange, and what it refuses.

U1 are the sites that advertised, U2 those that shared keys, U3 those whose masked input is in the sum, as in Bonawitz et al. 2017. The
state is plain data and loses every secret after the last exchange that needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pppml_core.errors import PolicyRefusal, WireError
from pppml_core.federation.identity import agreement_key, public_key, statement, verify
from pppml_core.interfaces.aggregation import Body, SiteContext, State
from pppml_core.values import ValueSpec
from pppml_secagg_plus import adverts, keys, masks, shamir
from pppml_secagg_plus.adverts import Advert
from pppml_secagg_plus.graph import Graph
from pppml_secagg_plus.members import bitmap, places_of, read_map, read_names, read_rows
from pppml_secagg_plus.terms import Terms

STAGES = ("advertise", "share", "mask", "agree", "unmask")

Answer = tuple[State, Body]


def stages(terms: Terms) -> tuple[str, ...]:
    """The exchanges in order: a sparse graph needs commitments first."""
    return ("commit", *STAGES) if terms.sparse else STAGES


def agreement(binding: bytes, cohort: Sequence[str], adverts_hash: bytes, shared: Collection[str], alive: Collection[str]) -> bytes:
    """What every site signs before anything is unmasked: U1 with its keys, U2, and the bitmap of U3."""
    body = {"adverts": adverts_hash, "shared": bitmap(shared, cohort), "alive": bitmap(alive, cohort)}
    return statement("secagg-plus agree", binding, body)


def opened(terms: Terms, ctx: SiteContext) -> State:
    """Fresh secrets of an attempt: two X25519 keys, the seed of the self-mask, and a nonce where the graph is drawn."""
    state = {
        "next": stages(terms)[0],
        "box_private": agreement_key(ctx.entropy)[0],
        "mask_private": agreement_key(ctx.entropy)[0],
        "seed": ctx.entropy(shamir.SECRET_BYTES),
    }
    return {**state, "nonce": ctx.entropy(adverts.NONCE_BYTES)} if terms.sparse else state


@dataclass(frozen=True)
class SiteSide:
    """One site in one attempt."""

    terms: Terms
    value: ValueSpec
    word: np.dtype[np.unsignedinteger]
    ctx: SiteContext

    def answer(self, stage: str, state: State, body: Body) -> Answer:
        """The new state and the reply. Raises PolicyRefusal for an exchange out of order."""
        if stage not in stages(self.terms) or state.get("next") != stage:
            raise PolicyRefusal(f"the next exchange is {state.get('next')!r}, not {stage!r}", place=self.ctx.site)
        step = getattr(self, f"_{stage}")
        after = (*stages(self.terms), "none")[stages(self.terms).index(stage) + 1]
        state, reply = step(state, body)
        return {**state, "next": after}, reply

    # -- the exchanges ------------------------------------------------------------------------------------------------------------------

    def _commit(self, state: State, body: Body) -> Answer:
        """Commit to the nonce, before anybody shows one."""
        commitment = adverts.commit_nonce(state["nonce"], self.ctx.binding, self.ctx.site)
        signature = self.ctx.sign(nonce_statement(self.ctx.binding, commitment))
        return state, {"binding": self.ctx.binding, "commitment": commitment, "signature": signature}

    def _advertise(self, state: State, body: Body) -> Answer:
        """Show fresh public keys, the commitment to the self-mask's seed, and all terms, signed."""
        ctx = self.ctx
        advert = Advert(
            terms=self.terms,
            roster=adverts.pinned(ctx.roster, ctx.cohort),
            binding=ctx.binding,
            box_key=public_key(state["box_private"]),
            mask_key=public_key(state["mask_private"]),
            commitment=adverts.commit_seed(state["seed"], ctx.binding, ctx.site),
        )
        if self.terms.sparse:
            committed = self._commitments(state, body)
            advert = replace(advert, nonce=state["nonce"], commitments=adverts.digest_all(b"nonces", committed, committed.values()))
            state = {**state, "commitments": committed}
        packed = advert.pack()
        signature = ctx.sign(adverts.to_sign(ctx.site, ctx.binding, packed))
        return {**state, "advert": packed}, {"advert": packed, "signature": signature}

    def _share(self, state: State, body: Body) -> Answer:
        """Check everybody's advert, then share both secrets with the neighbours, each share in a box only its holder can open."""
        ctx, own = self.ctx, Advert.unpack(state["advert"])
        members, digests = self._members(state, body)
        adverts_hash = adverts.digest_all(b"adverts", members, digests)
        graph = Graph(members, self.terms.degree, adverts_hash)
        near = graph.neighbours(ctx.site)
        self._check_enough(members, {*near, ctx.site}, "members")
        peers = self._read_adverts(state, body, own, {name: d for name, d in zip(members, digests, strict=True) if name in near})
        self._check_policy(len(peers) + 1)

        places = places_of(ctx.cohort)
        points = [places[name] + 1 for name in (*peers, ctx.site)]
        key_shares = shamir.split(state["mask_private"], self.terms.threshold, points, ctx.entropy)
        seed_shares = shamir.split(state["seed"], self.terms.threshold, points, ctx.entropy)
        boxes, receiving, agreement = {}, {}, keys.Agreement(state["box_private"])
        for name, peer in peers.items():
            pair = keys.Pair.of(ctx.binding, places, (ctx.site, own.box_key), (name, peer.box_key))
            sending, receiving[name] = keys.box_keys(pair, ctx.site, agreement)
            shares = key_shares[places[name] + 1] + seed_shares[places[name] + 1]
            boxes[name] = keys.close_box(sending, ctx.site, name, ctx.binding, shares)
        return {
            "mask_private": state["mask_private"],
            "mask_public": own.mask_key,
            "seed": state["seed"],
            "own_share": seed_shares[places[ctx.site] + 1],
            "members": list(members),
            "adverts": adverts_hash,
            "mask_keys": {name: peer.mask_key for name, peer in peers.items()},
            "box_keys": receiving,
        }, {"boxes": boxes}

    def _mask(self, state: State, body: Body) -> Answer:
        """Take in the shares of the neighbours, and send the input under the self-mask and one mask for each neighbour in U2."""
        ctx = self.ctx
        shared = read_names(body.get("shared"), state["members"], "shared")
        neighbours: Mapping[str, bytes] = state["mask_keys"]
        self._check_enough(shared, {*neighbours, ctx.site}, "shared")
        near = [name for name in shared if name in neighbours]
        boxes = read_map(body.get("boxes"), near, "boxes")
        shares = {name: keys.open_box(state["box_keys"][name], name, ctx.site, ctx.binding, boxes[name]) for name in near}

        places = places_of(ctx.cohort)
        agreement = keys.Agreement(state["mask_private"])
        keyed = [(keys.self_mask_key(state["seed"], ctx.binding), 1)]
        for name in near:
            pair = keys.Pair.of(ctx.binding, places, (ctx.site, state["mask_public"]), (name, neighbours[name]))
            keyed.append((keys.mask_key(pair, ctx.site, agreement), keys.mask_sign(pair, ctx.site)))
        total = self._words()
        masks.add_masks(total, keyed)
        return {
            "own_share": state["own_share"],
            "adverts": state["adverts"],
            "neighbours": list(neighbours),
            "shared": list(shared),
            "shares": shares,
        }, {"values": total}

    def _agree(self, state: State, body: Body) -> Answer:
        """Sign who is in the sum; after this no other list is ever accepted."""
        ctx = self.ctx
        alive = read_names(body.get("alive"), state["shared"], "alive")
        self._check_enough(alive, {*state["neighbours"], ctx.site}, "alive")
        signature = ctx.sign(agreement(ctx.binding, ctx.cohort, state["adverts"], state["shared"], alive))
        return {**state, "alive": list(alive)}, {"signature": signature}

    def _unmask(self, state: State, body: Body) -> Answer:
        """With enough signatures under the same list: of each neighbour in U3 the share of its seed, of each other one that of its key."""
        ctx, shares = self.ctx, state["shares"]
        alive = read_names(body.get("alive"), state["shared"], "alive")
        dead = read_names(body.get("dead"), state["shared"], "dead")
        if set(alive) & set(dead):
            raise PolicyRefusal("a site cannot be alive and dead: both of its secrets would be known", place=ctx.site)
        if list(alive) != state["alive"] or {*alive, *dead} != set(state["shared"]):
            raise PolicyRefusal("these are not the lists that were agreed on", place=ctx.site)
        self._check_signatures(state, body.get("signatures"))
        ctx.release(alive)
        seed_shares = {name: shares[name][shamir.SHARE_BYTES :] for name in alive if name in shares}
        key_shares = {name: shares[name][: shamir.SHARE_BYTES] for name in dead if name in shares}
        return {}, {"seed_shares": {**seed_shares, ctx.site: state["own_share"]}, "key_shares": key_shares}

    # -- what is checked ----------------------------------------------------------------------------------------------------------------

    def _commitments(self, state: State, body: Body) -> Mapping[str, bytes]:
        """All commitments to nonces, this site's own among them as it was given."""
        members = read_names(body.get("members"), self.ctx.cohort, "members")
        committed = dict(zip(members, read_rows(body.get("commitments"), len(members), "commitments"), strict=True))
        if committed.get(self.ctx.site) != adverts.commit_nonce(state["nonce"], self.ctx.binding, self.ctx.site):
            raise WireError("this site's commitment is missing or was changed", place="commitments")
        return committed

    def _members(self, state: State, body: Body) -> tuple[tuple[str, ...], list[bytes]]:
        """U1 and the digests of its adverts; this site's own is the one it sent, whatever the server says."""
        own = adverts.digest(state["advert"])
        if not self.terms.sparse:
            given = body.get("adverts")
            if not isinstance(given, Mapping):
                raise WireError("adverts are a map", place="adverts")
            members = read_names(list(given), self.ctx.cohort, "adverts")
            return members, [own if name == self.ctx.site else _digest(given[name]) for name in members]
        members = read_names(body.get("members"), self.ctx.cohort, "members")
        digests = read_rows(body.get("digests"), len(members), "digests")
        if self.ctx.site in members and digests[members.index(self.ctx.site)] != own:
            raise WireError("this site's advert was changed", place="digests")
        return members, digests

    def _read_adverts(self, state: State, body: Body, own: Advert, near: Mapping[str, bytes]) -> dict[str, Advert]:
        """The neighbours' adverts, authentic and in agreement with this site's, each key once."""
        given, signatures = body.get("adverts"), body.get("signatures")
        if not isinstance(given, Mapping) or not isinstance(signatures, Mapping):
            raise WireError("adverts and their signatures are maps", place="adverts")
        peers = {}
        for name, digest in near.items():
            peer = adverts.read(name, given.get(name), signatures.get(name), self.ctx.roster[name], own)
            if self.terms.sparse:
                if _digest(given[name]) != digest:
                    raise WireError(f"the advert of {name} is not the one that decided the ring", place="adverts")
                if peer.commitments != own.commitments:
                    raise WireError(f"{name} was shown other commitments", place="adverts")
                if state["commitments"].get(name) != adverts.commit_nonce(peer.nonce, self.ctx.binding, name):
                    raise WireError(f"{name} had committed to another nonce", place="adverts")
            peers[name] = peer
        public = [key for advert in (own, *peers.values()) for key in (advert.box_key, advert.mask_key)]
        if len(set(public)) < len(public):
            raise WireError("two keys of this attempt are the same", place="adverts")
        return peers

    def _check_policy(self, holders: int) -> None:
        """This site's own rules, with the share holders it has verified itself."""
        t, policy = self.terms.threshold, self.ctx.policy
        c = policy.max_colluders
        if 2 * t <= holders + c:
            reason = f"max_colluders: {t} of {holders} shares are too few against a lying server with {c} sites"
            raise PolicyRefusal(reason, place=self.ctx.site, hint=f"aggregator.threshold: {(holders + c) // 2 + 1} or more")
        if t - c < policy.min_honest:
            reason = f"min_honest: {t} shares less {c} colluders are {t - c}, at least {policy.min_honest} required"
            raise PolicyRefusal(reason, place=self.ctx.site)
        if self.terms.sparse and holders - 1 < policy.min_degree:
            raise PolicyRefusal(f"min_degree: {holders - 1} neighbours, at least {policy.min_degree} required", place=self.ctx.site)

    def _check_enough(self, names: Sequence[str], holders: Collection[str], what: str) -> None:
        """This site is in the list, and so are enough of those who hold its shares and enough sites for its policy."""
        if self.ctx.site not in names:
            raise PolicyRefusal(f"{what}: this site is not in the list", place=self.ctx.site)
        if (count := sum(name in holders for name in names)) < self.terms.threshold:
            raise PolicyRefusal(f"{what}: {count} share holders, at least {self.terms.threshold} required", place=self.ctx.site)
        if len(names) < self.ctx.policy.min_cohort:
            raise PolicyRefusal(f"{what}: {len(names)} sites, min_cohort is {self.ctx.policy.min_cohort}", place=self.ctx.site)

    def _check_signatures(self, state: State, signatures: object) -> None:
        """At least as many share holders of this site as the threshold have signed the very list this site signed."""
        if not isinstance(signatures, Mapping):
            raise WireError("signatures are a map", place="signatures")
        known = {*state["neighbours"], self.ctx.site} & set(state["alive"])
        signers = read_names(list(signatures), [name for name in self.ctx.cohort if name in known], "signatures")
        if len(signers) < self.terms.threshold:
            raise PolicyRefusal(f"{len(signers)} signatures under the list, at least {self.terms.threshold} required", place=self.ctx.site)
        signed = agreement(self.ctx.binding, self.ctx.cohort, state["adverts"], state["shared"], state["alive"])
        for name in signers:
            verify(self.ctx.roster[name], signatures[name], signed, name)

    def _words(self) -> masks.Words:
        """The contribution modulo 2**32 or 2**64. Raises WireError where it is not what was planned: a wrapped sum would be wrong."""
        given = self.ctx.contribution()
        if given.shape != (self.value.length,) or not np.issubdtype(given.dtype, np.signedinteger):
            raise WireError(f"a contribution of {given.dtype} and shape {given.shape} is not the planned one", place=self.ctx.site)
        if max(int(given.max(initial=0)), -int(given.min(initial=0))) > (self.value.bound or 0):
            raise WireError("the contribution holds a number beyond its bound", place=self.ctx.site)
        return given.astype(f"i{self.word.itemsize}").view(self.word)


def nonce_statement(binding: bytes, commitment: bytes) -> bytes:
    """What a site signs of its nonce."""
    return statement("secagg-plus commit", binding, {"commitment": commitment})


def _digest(packed: object) -> bytes:
    if not isinstance(packed, bytes):
        raise WireError("an advert is bytes", place="adverts")
    return adverts.digest(packed)

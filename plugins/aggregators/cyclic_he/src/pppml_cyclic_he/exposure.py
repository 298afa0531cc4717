"""What a coalition can decode, by the worst case: its members are curious, and keep what an honest party forgets.

A member's state is therefore one from which nothing was ever forgotten (see :func:`.site.forget`); ``server``, where it takes part, is a
member with ``hop``, the private key to which sites seal what they release.

- The ciphertexts a member sent or was handed are *cuts* of their ring: the sum of the shares of all sites up to there. With the secret key
  of the ring's initiator, the difference of two cuts is the sum of the shares of the sites between them.
- A group of sites is cut off where the coalition knows the cuts of every ring on all sides of it. With all secret keys the shares add up
  to the masked sum of the group; with the seeds of its self-masks, which go to the server, to its sum.
- Where the secret key of one ring is missing, the released ring sums and seeds give the sum of the list, and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pppml_core.errors import PppmlError
from pppml_core.federation.identity import unseal
from pppml_core.interfaces.aggregation import Exposure, Message
from pppml_core.randomness import Secret
from pppml_core.wire.messages import SERVER
from pppml_cyclic_he import adverts, uniform
from pppml_cyclic_he.hops import LINK_BYTES, Hop, hops_of
from pppml_cyclic_he.setting import Setting, stage_of
from pppml_cyclic_he.site import box_of, released_place

Vector = np.ndarray[Any, Any]


def exposed(setting: Setting, view: Mapping[str, Any]) -> list[Exposure]:
    """All sums that the coalition decodes, attempt by attempt."""
    numbers = sorted({message.attempt for message in view["messages"]})
    by_attempt = {one["number"]: one["states"] for one in view.get("attempts", ())}
    out: list[Exposure] = []
    for number in numbers:
        messages = [m for m in view["messages"] if m.attempt == number and m.kind in ("session", "reply")]
        coalition = Coalition(setting, tuple(view["parties"]), messages, by_attempt.get(number, view["states"]))
        out += coalition.exposures()
    return out


class Coalition:
    """One attempt, as a coalition sees it."""

    def __init__(self, setting: Setting, parties: Sequence[str], messages: Sequence[Message], states: Mapping[str, Any]) -> None:
        self._setting, self._rings, self._messages, self._states = setting, setting.rings, messages, states
        self._sites = frozenset(parties) & frozenset(self._rings.order)
        self._with_server = SERVER in parties
        keys = next((m for m in messages if m.stage == "keys" and m.kind == "session"), None)
        self._digest = b""
        if keys is not None:
            binding = next(iter(keys.body["adverts"].values()))["binding"]
            self._digest = adverts.digest(binding, keys.body)

    def exposures(self) -> list[Exposure]:
        """All sums it decodes."""
        if not self._digest:
            return []
        seeds, without = self.seeds(), self._without()
        if not all(self._has(site, "secret") for site in self._rings.initiators):
            return self._listed(seeds, without)
        cuts = [self.cuts(ring) for ring in range(self._rings.count)]
        found = []
        for group in self._groups(cuts, without):
            if self._setting.exact and not group <= set(seeds):
                continue
            parts = [self._part(known, self._rings.path(ring, without), group) for ring, known in enumerate(cuts)]
            found.append(self._exposure(sorted(group), parts, seeds))
        return found

    def _groups(self, cuts: Sequence[Mapping[str, Vector]], without: Sequence[str]) -> list[set[str]]:
        """Other sites that the coalition cannot tell apart: joined, in one ring or several, by hops whose cut it does not know."""
        groups = [{site} for site in self._rings.order if site not in without]
        for ring, known in enumerate(cuts):
            path = self._rings.path(ring, without)
            for site, after in zip(path, [*path[1:], path[0]], strict=True):
                if site not in known:
                    joined = [group for group in groups if group & {site, after}]
                    groups = [group for group in groups if group not in joined] + [set().union(*joined)]
        return [group for group in groups if not group & self._sites]

    def _has(self, site: str, what: str) -> bool:
        return site in self._sites and what in self._states.get(site, {})

    def _listed(self, seeds: Mapping[str, bytes], without: Sequence[str]) -> list[Exposure]:
        """The sum over the list, from what was released to the server."""
        sums = [self._released(starter, "sum") for starter in self._rings.initiators]
        members = tuple(site for site in self._rings.order if site not in without)
        if any(one is None for one in sums) or (self._setting.exact and not set(members) <= set(seeds)):
            return []
        dtype = self._setting.sum_dtype
        values = [np.frombuffer(one, dtype).astype(np.uint64 if self._setting.exact else np.float64) for one in sums if one is not None]
        return [self._exposure(members, values, seeds)]

    def _exposure(self, group: Sequence[str], parts: Iterable[Vector], seeds: Mapping[str, bytes]) -> Exposure:
        setting = self._setting
        if not setting.exact:
            return Exposure(tuple(group), np.rint(sum(parts)).astype(np.int64))
        total = np.zeros(setting.params.length, np.uint64)
        for part in parts:
            self._add(total, part)
        for site in group:
            uniform.subtract(total, uniform.residues(seeds[site], setting.params.length, setting.modulus), setting.modulus)
        return Exposure(tuple(group), setting.params.integers(total))

    def _part(self, cuts: Mapping[str, Vector], path: Sequence[str], group: set[str]) -> Vector:
        """The sum of a group's shares in one ring: each stretch of it is the cut after its last site less the one before its first."""
        total: Vector = np.zeros(self._setting.params.length, np.uint64 if self._setting.exact else np.float64)
        for before, site in pairwise(path):
            if site in group and site in cuts:
                self._add(total, cuts[site])
            if site in group and before in cuts:
                self._add(total, cuts[before], negative=True)
        return total

    def _add(self, total: Vector, other: Vector, *, negative: bool = False) -> None:
        if self._setting.exact:
            (uniform.subtract if negative else uniform.add)(total, other, self._setting.modulus)
        else:
            total += -other if negative else other

    def cuts(self, ring: int) -> dict[str, Vector]:
        """Site -> the decrypted sum of the shares up to it, of every ciphertext in the coalition's hands; empty without the secret key."""
        cuts: dict[str, Vector] = {}
        initiator = self._rings.initiators[ring]
        if not self._digest or not self._has(initiator, "secret"):
            return cuts
        secret = Secret(self._states[initiator]["secret"])
        for message in self._messages:
            closing = message.stage == "agree" and message.recipient == initiator
            if not (message.stage == stage_of(ring) or closing) or not message.body.get("chain"):
                continue
            hop = self._last_hop(ring, message)
            key = None if hop.sender in cuts else self._box_key(hop, message)
            if key is not None:
                values = self._setting.backend.decrypt(self._setting.params, secret, hop.uncover(key, message.body["box"]))
                cuts[hop.sender] = values.astype(np.uint64 if self._setting.exact else np.float64)
        return cuts

    def _last_hop(self, ring: int, message: Message) -> Hop:
        chain, path = message.body["chain"], self._rings.path(ring, message.body["without"])
        return hops_of(self._digest, ring, chain, [*path, path[0]][: len(chain) // LINK_BYTES + 1])[-1]

    def _box_key(self, hop: Hop, message: Message) -> bytes | None:
        """The key of a box that a member sent or can open."""
        own = self._states.get(hop.sender, {}).get(box_of(hop.ring))
        private = self._states.get(hop.recipient, {}).get("hop")
        if own is not None and hop.sender in self._sites:
            return bytes(own)
        if private is None or hop.recipient not in self._sites:
            return None
        return hop.unlock(private, message.body["key"])

    def seeds(self) -> dict[str, bytes]:
        """Self-mask seeds in the coalition's hands: its members' own, and those released to the server."""
        held = {site: self._states[site]["seed"] for site in self._sites if self._has(site, "seed")}
        released = {site: self._released(site, "seed") for site in self._rings.order}
        return {**held, **{site: seed for site, seed in released.items() if seed is not None}}

    def _released(self, site: str, what: str) -> bytes | None:
        """What a site released to the server, if the server is a member that kept its key."""
        private = self._states.get(SERVER, {}).get("hop")
        if not self._with_server or private is None:
            return None
        for message in self._messages:
            if message.stage == "release" and message.kind == "reply" and message.sender == site and what in message.body:
                try:
                    return unseal(private, message.body[what], released_place(self._digest, what, site))
                except PppmlError:
                    return None
        return None

    def _without(self) -> tuple[str, ...]:
        """The sites left out, as the last message says."""
        named = [m.body["without"] for m in self._messages if "without" in m.body]
        return max((tuple(one) for one in named), key=len, default=())

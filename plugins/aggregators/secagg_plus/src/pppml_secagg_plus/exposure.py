"""What a coalition can decode: the worst case, from everything its members hold and everything that went through the server.

A masked input is known but for its self-mask and its pairwise masks. A coalition takes away every mask whose key it holds or can rebuild.
The masks that are left join sites to each other: over each set of sites that they join, and over no smaller one, they cancel. Where a mask
towards a site without a masked input is left, nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pppml_core.errors import WireError
from pppml_core.federation.identity import public_key
from pppml_core.interfaces.aggregation import Exposure, Message
from pppml_core.wire.messages import SERVER
from pppml_secagg_plus import adverts, keys, masks, shamir
from pppml_secagg_plus.adverts import Advert
from pppml_secagg_plus.graph import Graph
from pppml_secagg_plus.members import places_of


def exposed(cohort: Sequence[str], view: Mapping[str, Any]) -> list[Exposure]:
    """The sums that a view gives, attempt by attempt. Without the server's view there is no masked input to read."""
    if SERVER not in view["parties"]:
        return []
    numbers = sorted({m.attempt for m in view["messages"]})
    out = []
    for number in numbers:
        messages = [m for m in view["messages"] if m.attempt == number]
        named = next((a["cohort"] for a in view.get("attempts", ()) if a["number"] == number), cohort)
        out += _Attempt(named, messages, list(_states(view, number, number == numbers[-1]))).exposures()
    return out


def _states(view: Mapping[str, Any], number: int, last: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All states of the members in one attempt, those they remember included: ``(site, state)``."""
    held = [a for a in view.get("attempts", ()) if a["number"] == number] or ([view] if last else [])
    for attempt in held:
        yield from attempt["states"].items()
        for site, remembered in attempt.get("history", {}).items():
            yield from ((site, state) for state in remembered)


class _Attempt:
    def __init__(self, cohort: Sequence[str], messages: Iterable[Message], states: list[tuple[str, Mapping[str, Any]]]) -> None:
        self.asked: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.sent: dict[tuple[str, str], Mapping[str, Any]] = {}
        for m in messages:
            if m.kind == "reply":
                self.sent.setdefault((m.stage, m.sender), m.body)
            elif m.sender == SERVER:
                self.asked.setdefault((m.stage, m.recipient), m.body)
        self.places, self.states = places_of(cohort), states
        self.adverts = {s: Advert.unpack(b["advert"]) for (stage, s), b in self.sent.items() if stage == "advertise" and "advert" in b}
        self.seeds: dict[str, bytes] = {}
        self.private: dict[str, bytes] = {}

    def exposures(self) -> list[Exposure]:
        inputs = {s: b["values"] for (stage, s), b in self.sent.items() if stage == "mask" and "values" in b}
        if not inputs:
            return []
        graph = self._graph()
        self._rebuild()
        shared = {site: set(self.asked["mask", site]["shared"]) & graph.neighbours(site) for site in inputs}
        return [
            Exposure(tuple(site for site in graph.members if site in part), self._sum(part, inputs, shared))
            for part in self._parts(shared)
            if all(site in inputs and site in self.seeds for site in part)
        ]

    def _graph(self) -> Graph:
        """As the sites computed it: over the members that the server named to them."""
        asked = next(body for (stage, _), body in self.asked.items() if stage == "share")
        named = asked["members"] if "members" in asked else asked["adverts"]
        members = [site for site in self.adverts if site in named]
        packed = [adverts.digest(self.adverts[site].pack()) for site in members]
        degree = self.adverts[members[0]].terms.degree
        return Graph(members, degree, adverts.digest_all(b"adverts", members, packed))

    def _rebuild(self) -> None:
        """Every secret that the members hold themselves, or that enough shares in their hands and the server's give."""
        found: dict[tuple[str, str], dict[str, bytes]] = {}
        for (stage, holder), body in self.sent.items():
            for kind in ("seed_shares", "key_shares") if stage == "unmask" else ():
                for owner, share in body.get(kind, {}).items():
                    found.setdefault((kind, owner), {})[holder] = share
        for site, state in self.states:
            self.seeds |= {site: state["seed"]} if "seed" in state else {}
            self.private |= {site: state["mask_private"]} if "mask_private" in state else {}
            if "own_share" in state:
                found.setdefault(("seed_shares", site), {})[site] = state["own_share"]
            for owner, both in self._opened(site, state):
                found.setdefault(("key_shares", owner), {})[site] = both[: shamir.SHARE_BYTES]
                found.setdefault(("seed_shares", owner), {})[site] = both[shamir.SHARE_BYTES :]
        threshold = next(iter(self.adverts.values())).terms.threshold
        for (kind, owner), shares in found.items():
            if len(shares) < threshold:
                continue
            some = {self.places[h] + 1: shares[h] for h in sorted(shares)[:threshold]}
            try:
                secret = shamir.combine(some)
            except WireError:
                continue
            advert = self.adverts[owner]
            if kind == "seed_shares" and adverts.commit_seed(secret, advert.binding, owner) == advert.commitment:
                self.seeds[owner] = secret
            elif kind == "key_shares" and public_key(secret) == advert.mask_key:
                self.private[owner] = secret

    def _opened(self, site: str, state: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Both shares from every box that is for a member, whether it ever got to the box or the server kept it: ``(owner, shares)``."""
        yield from state.get("shares", {}).items()
        for (stage, owner), body in self.sent.items():
            if stage != "share" or site not in body.get("boxes", {}) or not {"box_private", "box_keys"} & state.keys():
                continue
            own, other = self.adverts[site], self.adverts[owner]
            key = state.get("box_keys", {}).get(owner)
            if key is None:
                pair = keys.Pair.of(own.binding, self.places, (site, own.box_key), (owner, other.box_key))
                key = keys.box_keys(pair, site, keys.Agreement(state["box_private"]))[1]
            yield owner, keys.open_box(key, owner, site, own.binding, body["boxes"][site])

    def _parts(self, shared: Mapping[str, set[str]]) -> list[set[str]]:
        """Sites joined by masks nobody in the coalition can compute."""
        joined = {site: {o for o in near if site not in self.private and o not in self.private} for site, near in shared.items()}
        for site, near in list(joined.items()):
            for other in near:
                joined.setdefault(other, set()).add(site)
        parts, left = [], set(shared)
        while left:
            part, edge = set(), {left.pop()}
            while edge:
                part |= edge
                edge = {other for site in edge for other in joined[site]} - part
            parts.append(part)
            left -= part
        return parts

    def _sum(self, part: set[str], inputs: Mapping[str, Any], shared: Mapping[str, set[str]]) -> Any:
        keyed = []
        for site in part:
            binding = self.adverts[site].binding
            keyed.append((keys.self_mask_key(self.seeds[site], binding), -1))
            for other in shared[site] - part:
                pair = keys.Pair.of(binding, self.places, (site, self.adverts[site].mask_key), (other, self.adverts[other].mask_key))
                holder = site if site in self.private else other
                keyed.append((keys.mask_key(pair, holder, keys.Agreement(self.private[holder])), -keys.mask_sign(pair, site)))
        total = np.zeros_like(next(iter(inputs.values())))
        for site in part:
            total += inputs[site]
        masks.add_masks(total, keyed)
        return total.view(f"i{total.itemsize}")

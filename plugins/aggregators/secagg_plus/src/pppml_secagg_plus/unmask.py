"""From the sum under masks to the sum: rebuild what vanished, take the masks away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy.typing as npt

from pppml_core.errors import RoundLost, WireError
from pppml_core.federation.identity import public_key
from pppml_core.interfaces.aggregation import ServerContext
from pppml_secagg_plus import keys, masks, shamir
from pppml_secagg_plus.adverts import Advert, commit_seed
from pppml_secagg_plus.graph import Graph
from pppml_secagg_plus.members import places_of


@dataclass
class Collected:
    """The shares that came in: owner -> holder -> share. Of each owner there is one kind only."""

    seeds: dict[str, dict[str, bytes]] = field(repr=False)
    private: dict[str, dict[str, bytes]] = field(repr=False)
    #: holders that gave a share which did not fit, asked last from then on.
    doubted: set[str] = field(default_factory=set)

    def take(self, holder: str, seeds: Mapping[str, bytes], private: Mapping[str, bytes]) -> None:
        """The shares one holder sent."""
        for owners, given in ((self.seeds, seeds), (self.private, private)):
            for owner, share in given.items():
                owners[owner][holder] = share

    def rebuild(
        self, shares: Mapping[str, bytes], places: Mapping[str, int], threshold: int, public: Callable[[bytes], bytes], expected: bytes
    ) -> bytes | None:
        """The secret whose ``public`` side is the ``expected`` one, from any ``threshold`` of the shares; None where it was not found.

        A wrong share does not lose the round: windows of ``threshold`` holders around the circle of holders are tried, one of which
        leaves out any one holder, and any that are next to each other, that can be spared.
        """
        holders = sorted(shares, key=lambda name: (name in self.doubted, places[name]))
        for window in _windows(holders, threshold):
            try:
                secret = shamir.combine({places[name] + 1: shares[name] for name in window})
            except WireError:
                continue
            if public(secret) == expected:
                if window != holders[:threshold]:
                    self.doubted |= set(holders) - set(window)
                return secret
        return None


def _windows(holders: Sequence[str], size: int) -> Iterator[list[str]]:
    if len(holders) < size:
        return
    for start in range(len(holders) if len(holders) > size else 1):
        yield [holders[(start + i) % len(holders)] for i in range(size)]


def unmasked(
    total: masks.Words,
    collected: Collected,
    graph: Graph,
    advertised: Mapping[str, Advert],
    ctx: ServerContext,
    threshold: int,
    alive: Sequence[str],
) -> npt.NDArray[Any]:
    """The signed sum over ``alive``, shape ``(length,)``; ``total`` is used up.

    A rebuilt seed must fit the commitment, a rebuilt key the public key, both from the signed adverts. Raises RoundLost where one cannot
    be rebuilt: shares have left the sites by now.
    """
    places = places_of(ctx.cohort)
    keyed: list[tuple[bytes, int]] = []
    for owner in alive:
        public = partial(commit_seed, binding=ctx.binding, site=owner)
        seed = collected.rebuild(collected.seeds[owner], places, threshold, public, advertised[owner].commitment)
        keyed.append((keys.self_mask_key(_found(seed, owner, ctx), ctx.binding), -1))
    for owner, shares in collected.private.items():
        mask_key = advertised[owner].mask_key
        private = _found(collected.rebuild(shares, places, threshold, public_key, mask_key), owner, ctx)
        agreement, near = keys.Agreement(private), graph.neighbours(owner)
        for peer in alive:
            if peer in near:
                pair = keys.Pair.of(ctx.binding, places, (owner, mask_key), (peer, advertised[peer].mask_key))
                keyed.append((keys.mask_key(pair, owner, agreement), -keys.mask_sign(pair, peer)))
    masks.add_masks(total, keyed)
    return total.view(f"i{total.itemsize}")


def _found(secret: bytes | None, owner: str, ctx: ServerContext) -> bytes:
    if secret is None:
        place = f"round {ctx.round}, attempt {ctx.attempt}, stage unmask"
        raise RoundLost(f"the shares of {owner} that came in do not give its secret: too few, or wrong", place=place)
    return secret

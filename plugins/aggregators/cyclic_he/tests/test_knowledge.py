"""The exact knowledge test: every coalition knows the sums over the groups it cuts off, if it holds all keys; else only the sum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import networkx as nx
import numpy as np
import pytest

from pppml_core.errors import RoundLost
from pppml_core.federation.identity import public_key
from pppml_core.testing import Basis, HarnessResult, KnowledgeSuite
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.knowledge import Row, coefficients
from pppml_core.testing.transparent_he import HEADER_BYTES, ID_BYTES, MAGIC, NONCE_BYTES, TransparentBackend
from pppml_core.wire.messages import SERVER
from pppml_cyclic_he import hops, server, site, uniform
from pppml_cyclic_he.plugin import pppml_aggregators
from pppml_cyclic_he.rings import Rings
from pppml_cyclic_he.template import largest_rings

CONFIG = TransparentConfig(security_bits=128)


class Locks:
    """Everything that was sealed or boxed, and who can open it. Written without a look at how the protocol opens its boxes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sealed: dict[bytes, tuple[bytes, bytes]] = {}  # sealed box -> (recipient's public key, contents)
        self.boxes: dict[bytes, tuple[bytes, bytes]] = {}  # box -> (key, ciphertext)
        self.server_keys: set[bytes] = set()
        seal, close, draw = site.seal, hops.Hop.close, server.agreement_key

        def sealing(recipient: bytes, plain: bytes, *rest: Any) -> bytes:
            box = seal(recipient, plain, *rest)
            self.sealed[box] = (recipient, plain)
            return box

        def closing(hop: hops.Hop, ciphertext: bytes, entropy: Any) -> tuple[bytes, bytes]:
            box, key = close(hop, ciphertext, entropy)
            self.boxes[box] = (key, ciphertext)
            return box, key

        def drawing() -> tuple[bytes, bytes]:
            private, public = draw()
            self.server_keys.add(public)
            return private, public

        patch.setattr(site, "seal", sealing)
        patch.setattr(hops, "seal", sealing)
        patch.setattr(hops.Hop, "close", closing)
        patch.setattr(server, "agreement_key", drawing)

    def index(self, result: HarnessResult) -> None:
        """Who holds which box, and who drew which key."""
        self.holders: dict[bytes, set[str]] = defaultdict(set)
        for passage in result.transcript.passages:
            for value in _bytes(passage.message.body):
                self.holders[value].update(passage.parties)
        self.drawn = {d: name for a in result.attempts for name, all_of in a.drawn.items() for d in all_of if len(d) == 32}
        self.owners = {public_key(secret): name for secret, name in self.drawn.items()} | dict.fromkeys(self.server_keys, SERVER)

    def opened(self, coalition: Collection[str]) -> Iterator[bytes]:
        """What is in all boxes in the coalition's hands that its members' keys open: seeds, sums, ciphertexts."""
        members = set(coalition)
        plain = [p for box, (to, p) in self.sealed.items() if self.owners.get(to) in members and self.holders[box] & members]
        yield from plain
        keys = {*plain, *(secret for secret, name in self.drawn.items() if name in members)}
        yield from (ciphertext for box, (key, ciphertext) in self.boxes.items() if key in keys and self.holders[box] & members)


def _bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _bytes(item)


class Rows(KnowledgeSuite):
    component = pppml_aggregators()[0]
    choices = {"backend": TransparentBackend(CONFIG)}
    modulus = CONFIG.modulus
    capacity = 40

    def aggregator(self, monkeypatch: pytest.MonkeyPatch, basis: Basis) -> Any:
        monkeypatch.setattr(uniform, "residues", basis.residues)
        self.locks = Locks(monkeypatch)
        return self.make()

    def faults(self, patch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
        """Fewer: before the first ring nobody has sent a contribution; a reply that is lost, or a site lost between the rings and
        the release, is an initiator's or b.
        """
        for fault in super().faults(patch):
            early, alike = fault["stage"] in ("advertise", "keys"), fault["do"] == "drop-reply" or fault["stage"] in ("agree", "confirm")
            if fault["site"] == "a" or (not early and (not alike or fault["site"] == "b")):
                yield fault

    def rows(self, result: HarnessResult, coalition: Sequence[str], basis: Basis) -> Iterable[Row]:
        if getattr(self, "indexed", None) is not result:
            self.indexed = result
            self.locks.index(result)
        keys = set().union(*(basis.keys.get(party, set()) for party in coalition))
        for plain in self.locks.opened(coalition):
            if plain.startswith(MAGIC):
                key, residues = _noted(plain)
                if key in keys:
                    yield coefficients(residues, self.modulus)
            elif len(plain) == 4 * self.capacity:
                yield coefficients(np.frombuffer(plain, "<u4").astype("<u8"), self.modulus)
            elif (row := basis.known(plain)) is not None:
                yield row

    def expected(self, result: HarnessResult, coalition: Sequence[str]) -> Iterable[Collection[str]]:
        """With the server and all initiators: the groups that the coalition cuts off, from the template alone. Else the sum."""
        last = result.attempts[-1]
        survivors = result.survivors if result.aborted is None else _lost(result)
        honest = set(survivors) - set(coalition)
        if SERVER not in coalition or not honest:
            return []
        rings = Rings(tuple(sorted(last.cohort)), min(self.config["rings"], largest_rings(len(last.cohort))))
        if not set(rings.initiators) <= set(coalition):
            return [honest]
        graph = nx.Graph()
        graph.add_nodes_from(honest)
        for ring in range(rings.count):
            whole, left = rings.path(ring), [s for s in rings.path(ring) if s in survivors]
            for one, other in zip(left, [*left[1:], left[0]], strict=True):
                # A site that was bridged in the first ring could open the box that was sealed to it, had it been handed it.
                passed = whole[(whole.index(one) + 1) % len(whole)]
                if {one, other} <= honest and not (ring == 0 and passed != other and passed in coalition):
                    graph.add_edge(one, other)
        return list(nx.connected_components(graph))


def _lost(result: HarnessResult) -> Collection[str]:
    """The sites of a sum that was released and then lost."""
    released = {over for sets in result.released.values() for over in sets}
    assert len(released) <= 1
    return next(iter(released), ()) if isinstance(result.aborted, RoundLost) else ()


def _noted(ciphertext: bytes) -> tuple[bytes, Any]:
    """(key id, residues) of a ciphertext of the transparent double."""
    return ciphertext[HEADER_BYTES - ID_BYTES : HEADER_BYTES], np.frombuffer(ciphertext, "<u8", offset=HEADER_BYTES + NONCE_BYTES)


class TestOneRing(Rows):
    config = {"rings": 1, "backend": CONFIG}
    sites = 4


class TestTwoRings(Rows):
    config = {"rings": 2, "backend": CONFIG}
    min_sites = 4
    sites = 5


class TestThreeRings(Rows):
    config = {"rings": 3, "backend": CONFIG}
    min_sites = sites = 7
    capacity = 64

    def faults(self, patch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
        """Fewer: every third bridged site, and one late loss a stage."""
        for fault in super().faults(patch):
            place = fault["stage"], fault["site"], fault["do"]
            if place in {("ring-1", "e", "drop"), ("ring-1", "f", "drop"), ("ring-3", "b", "drop-reply"), ("release", "g", "drop")}:
                yield fault

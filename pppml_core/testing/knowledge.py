"""The exact knowledge test: which combinations of contributions a coalition can compute, by linear algebra instead of by argument.

The real protocol runs with formal unknowns in place of numbers: site i contributes the i-th unit vector, and every expansion of a seed
gives a unit vector of its own. Every vector in a message, and every ciphertext of the transparent double, then *is* its row of
coefficients over the unknowns. A coalition's view is the row space of what it holds; the combinations of honest contributions in that
space, found by Gaussian elimination over a prime field, are what it knows, no more and no less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.testing.parties import acting
from pppml_core.testing.recording import HarnessResult
from pppml_core.testing.transparent_he import HEADER_BYTES, ID_BYTES, MAGIC, NONCE_BYTES

Row = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.int64]

#: a prime below 2**31: products of two residues fit 63 bits.
PRIME = 2**31 - 1
#: coefficients of a vector in a message are small; larger ones mean that something was not replaced by formal unknowns.
LARGEST = 64


class Basis:
    """Formal unknowns: the first are the sites' contributions, further ones are named by the bytes they are expanded from.

    Args:
        sites: in order.
        capacity: how many unknowns there may be; the length of every vector of the session.

    """

    def __init__(self, sites: Sequence[str], capacity: int) -> None:
        self.sites, self.capacity = tuple(sites), capacity
        self._index: dict[bytes, int] = {}
        #: party -> unknowns it expanded itself.
        self.expanded: dict[str, set[int]] = defaultdict(set)
        #: party -> ciphertexts that passed through its hands, as (key id, residues), and keys it made or used.
        self.ciphertexts: dict[str, list[tuple[bytes, npt.NDArray[np.uint64]]]] = defaultdict(list)
        self.keys: dict[str, set[bytes]] = defaultdict(set)

    def contributions(self) -> dict[str, npt.NDArray[np.int32]]:
        """Unit vectors, for :class:`~pppml_core.testing.harness.SessionHarness`."""
        units = np.eye(len(self.sites), self.capacity, dtype=np.int32)
        return dict(zip(self.sites, units, strict=True))

    def unit(self, key: bytes) -> Row:
        """The unknown of these bytes, as a unit vector; who asks for it is noted as knowing it."""
        index = self._index.setdefault(bytes(key), len(self.sites) + len(self._index))
        assert index < self.capacity, f"more than {self.capacity} unknowns: raise `capacity`"
        self.expanded[acting()].add(index)
        return self._row(index)

    def known(self, key: bytes) -> Row | None:
        """The unknown of these bytes if it is one, noting nothing: for a seed that a coalition can compute."""
        index = self._index.get(bytes(key))
        return None if index is None else self._row(index)

    def own(self, site: str) -> Row:
        """The contribution of a site."""
        return self._row(self.sites.index(site))

    def add_mask(self, total: npt.NDArray[Any], key: bytes, sign: int) -> None:
        """``total += sign * unit``: in place of a function that adds an expanded mask to words."""
        total += (sign * self._fitting(len(total), key)).astype(total.dtype)

    def residues(self, seed: bytes, length: int, modulus: int) -> npt.NDArray[np.uint64]:
        """The unit vector: in place of a function that expands a seed to residues."""
        return self._fitting(length, seed).astype(np.uint64)

    def listen(self, party: str, key: bytes, residues: npt.NDArray[np.uint64] | None) -> None:
        """For ``transparent_he.listener``."""
        if residues is None:
            self.keys[party].add(key)
        else:
            self.ciphertexts[party].append((key, residues.copy()))

    def _fitting(self, length: int, key: bytes) -> Row:
        assert length == self.capacity, f"a mask of {length} numbers, not {self.capacity}: it is expanded in parts, or values have limbs"
        return self.unit(key)

    def _row(self, index: int) -> Row:
        row = np.zeros(self.capacity, np.int64)
        row[index] = 1
        return row


def coefficients(vector: npt.NDArray[Any], modulus: int | None = None) -> Row:
    """A vector of words or residues as small signed integers: values near the modulus are negative.

    ``modulus``: of residues; other words wrap around at the size of their dtype.
    """
    row = vector.view(f"i{vector.itemsize}").astype(np.int64)
    if modulus is not None:
        row = np.where((row > modulus // 2) & (row < modulus), row - modulus, row)
    return row


def reduce(rows: npt.NDArray[np.integer[Any]], prime: int = PRIME) -> Matrix:
    """Reduced row echelon form modulo a prime below 2**31.5, without zero rows; equal for equal row spaces."""
    matrix = np.array(rows, np.int64) % prime
    rank = 0
    for column in range(matrix.shape[1]):
        if rank == len(matrix):
            break
        below = np.flatnonzero(matrix[rank:, column])
        if not below.size:
            continue
        pivot = rank + int(below[0])
        matrix[[rank, pivot]] = matrix[[pivot, rank]]
        matrix[rank] = matrix[rank] * pow(int(matrix[rank, column]), -1, prime) % prime
        others = np.flatnonzero(matrix[:, column])
        others = others[others != rank]
        matrix[others] = (matrix[others] - np.outer(matrix[others, column], matrix[rank])) % prime
        rank += 1
    return matrix[:rank]


def known_sums(rows: Sequence[Row] | Matrix, honest: Collection[int], prime: int = PRIME) -> Matrix:
    """A reduced basis of all combinations of the unknowns ``honest`` in the row space, shape ``(rank, len(honest))``.

    Unknowns that a row gives away by themselves are taken out of the others first, which leaves little to eliminate.
    """
    wanted = np.array(sorted(honest), np.int64)
    matrix = np.array(rows, np.int64) % prime if len(rows) else np.zeros((0, 0), np.int64)
    if not matrix.size:
        return np.zeros((0, len(wanted)), np.int64)
    alone: set[int] = set()
    while (single := np.flatnonzero(np.count_nonzero(matrix, axis=1) == 1)).size:
        found = np.nonzero(matrix[single])[1]
        alone.update(found.tolist())
        matrix[:, found] = 0
    matrix = matrix[matrix.any(axis=1)]
    rest = np.setdiff1d(np.flatnonzero(matrix.any(axis=0)), wanted)
    reduced = reduce(matrix[:, np.concatenate([rest, wanted])], prime)
    inside = reduced[~reduced[:, : len(rest)].any(axis=1), len(rest) :]
    units = np.array([wanted == index for index in sorted(alone.intersection(wanted.tolist()))], np.int64).reshape(-1, len(wanted))
    return reduce(np.vstack([inside, units]), prime)


def indicators(sets: Iterable[Collection[str]], honest: Sequence[str]) -> Matrix:
    """A reduced basis of the sums over these sets of honest sites."""
    rows = np.array([[site in members for site in honest] for members in sets], np.int64).reshape(-1, len(honest))
    return reduce(rows)


def spans(larger: Matrix, smaller: Matrix) -> bool:
    """Whether every row of ``smaller`` is a combination of rows of ``larger``."""
    return len(reduce(np.vstack([larger, smaller]))) == len(reduce(larger))


def words(basis: Matrix, honest: Sequence[str]) -> list[str]:
    """A basis of known combinations for people: ``a + b``, ``c - 2 d``."""
    signed = np.where(basis > PRIME // 2, basis - PRIME, basis)
    return [" + ".join(f"{c if c != 1 else ''} {s}".strip() for c, s in zip(row, honest, strict=True) if c) for row in signed]


def subsets(sites: Sequence[str], largest: int) -> Iterator[tuple[str, ...]]:
    """All sets of up to ``largest`` sites, the smallest first."""
    return chain.from_iterable(combinations(sites, size) for size in range(largest + 1))


class Holdings:
    """What each party of a finished session holds: vectors in the clear, unknowns whose seeds it has, ciphertexts and keys.

    Found without knowing the protocol: every array of the session's length and every byte string in a message or a state; every seed that a
    party's own code expanded; every ciphertext of the transparent double that its own code handled.
    """

    def __init__(self, result: HarnessResult, basis: Basis, modulus: int | None) -> None:
        self._basis, self._modulus = basis, modulus
        #: party -> its rows, by their bytes; and those it needs a key for, as (key id, row).
        self._rows: dict[str, dict[bytes, Row]] = defaultdict(dict)
        self._ciphertexts: dict[str, list[tuple[bytes, tuple[bytes, Row]]]] = defaultdict(list)
        for passage in result.transcript.passages:
            self._take(passage.parties, passage.message.body)
        for attempt in result.attempts:
            for site in attempt.states:
                self._take([site], [attempt.states[site], *attempt.history[site], *attempt.drawn[site]])
        for party, indices in basis.expanded.items():
            self._rows[party].update(self._named(basis._row(i)) for i in indices)
        for party, seen in basis.ciphertexts.items():
            self._ciphertexts[party] += [self._locked(key, residues) for key, residues in seen if len(residues) == basis.capacity]

    def rows(self, parties: Iterable[str]) -> list[Row]:
        """Everything the parties hold together, the ciphertexts they have a key for among it; each row once."""
        members = list(parties)
        keys = set().union(*(self._basis.keys.get(p, set()) for p in members))
        rows: dict[bytes, Row] = {}
        for party in members:
            rows.update(self._rows.get(party, {}))
            rows.update(row for key, row in self._ciphertexts.get(party, []) if key in keys)
        for row in rows.values():
            largest = int(np.abs(row).max())
            assert largest <= LARGEST, f"a vector with a coefficient of {largest:,}: some expansion has not been replaced by unknowns"
        return list(rows.values())

    def _take(self, parties: Iterable[str], value: Any) -> None:
        open_, locked = list(self._read(value)), [self._locked(*c) for c in self._encrypted(value)]
        for party in parties:
            self._rows[party].update(open_)
            self._ciphertexts[party] += locked

    def _locked(self, key: bytes, residues: npt.NDArray[np.uint64]) -> tuple[bytes, tuple[bytes, Row]]:
        return key, self._named(coefficients(residues, self._modulus))

    def _encrypted(self, value: Any) -> Iterator[tuple[bytes, npt.NDArray[np.uint64]]]:
        """Ciphertexts of the transparent double in a body or a state."""
        if isinstance(value, bytes) and value.startswith(MAGIC):
            if len(value) == HEADER_BYTES + NONCE_BYTES + 8 * self._basis.capacity:
                yield value[HEADER_BYTES - ID_BYTES : HEADER_BYTES], np.frombuffer(value, "<u8", offset=HEADER_BYTES + NONCE_BYTES)
        elif isinstance(value, Mapping | list | tuple):
            yield from chain.from_iterable(map(self._encrypted, value.values() if isinstance(value, Mapping) else value))

    def _read(self, value: Any) -> Iterator[tuple[bytes, Row]]:
        """Rows in a body or a state."""
        if isinstance(value, np.ndarray):
            if value.shape == (self._basis.capacity,) and value.dtype.kind in "iu":
                yield self._named(coefficients(value, self._modulus))
        elif isinstance(value, bytes):
            if (row := self._basis.known(value)) is not None:
                yield self._named(row)
            yield from self._packed(value)
        elif isinstance(value, Mapping | list | tuple):
            yield from chain.from_iterable(map(self._read, value.values() if isinstance(value, Mapping) else value))

    def _packed(self, data: bytes) -> Iterator[tuple[bytes, Row]]:
        """A vector written as bytes, where they look like one."""
        for size in (4, 8):
            if len(data) == size * self._basis.capacity:
                row = coefficients(np.frombuffer(data, f"<u{size}"), self._modulus)
                if np.abs(row).max() <= LARGEST:
                    yield self._named(row)

    @staticmethod
    def _named(row: Row) -> tuple[bytes, Row]:
        return row.tobytes(), row

"""Exact samples from a symmetric distribution on the integers that falls away from 0, by rejection under a staircase.

The integers from ``-bound`` to ``bound - 1`` are cut into bins of ``2**shift`` neighbours. Let ``f(x)`` be the probability of ``x`` up to
a constant factor. Bin ``i`` fills ``weights[i]`` of 65,536 cells, a whole number with ``scale * f(x) <= weights[i]`` for all ``x`` in it.
A sample is made so:

1. A uniform cell names the bin, a uniform offset the proposal ``x`` in it: probability ``weights[i] / (65536 * 2**shift)``.
2. ``x`` is accepted with probability ``scale * f(x) / weights[i]``, and otherwise the sample is made anew.

The product is proportional to ``f(x)``, whatever the weights are: rounding in their making costs proposals, never exactness. Cell and
offset are uniform bits. The only decision about a real number is whether a uniform number ``u`` is below the probability in 2. The bits of
``u`` are drawn as needed:

- The word that named cell and offset has at least 23 bits left. In most proposals they show ``u`` below the least acceptance probability
  in the bin, rounded down.
- Otherwise 64 more bits are drawn and ``f`` is computed in float64. Outside ``MARGIN``, which no error of that reaches, this decides.
- Inside it, about once in 2**27 proposals, ``f`` is enclosed between integers over a power of two and bits are added until it is decided.

So samples have exactly the cut distribution, as far as the bits are uniform. Time depends on the values drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pppml_dp.bits import Words

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: bits that name a cell.
CELL_BITS = 16
CELLS = 2**CELL_BITS
#: bins on either side of 0, at most: more fit the curve more closely, but each rounds its weight up to a whole cell.
BINS = 512
#: absolute error that the float64 values of ``f`` may have.
ERROR = 2.0**-44
#: error of an acceptance probability computed from them: at most ``65536 * ERROR``, and a thousandth more for its own few roundings.
MARGIN = 2.0**-28 * 1.001
#: proposals made at once: their arrays stay in the cache.
BLOCK = 16_384


class Staircase:
    """A sampler of integers with probabilities proportional to ``f``.

    Args:
        f: float64 values for int64 ``(n,)``, absolute error at most ``ERROR``. The true values are even, fall away from 0 and are about 1
            there.
        enclosed: ``(x, bits)`` to two integers ``low <= f(x) * 2**bits <= high``, ever closer to each other, in proportion, as bits grow.
        reach: where the tails may be cut, at least 1 and at most 2**34.
    """

    def __init__(self, f: Callable[[Integers], Floats], enclosed: Callable[[int, int], tuple[int, int]], reach: float) -> None:
        self._f, self._enclosed = f, enclosed
        self._shift = 0
        while reach > BINS << self._shift:
            self._shift += 1
        width = 1 << self._shift
        side = -int(-reach // width)
        self.bound = side * width
        self._first = -self.bound

        # The largest and the least f in each bin are at its integers nearest to 0 and farthest from it.
        low = np.arange(-side, side) * width
        high = low + width - 1
        near, far = np.where(low < 0, -high, low), np.where(low < 0, -low, high)
        self._scale, self._weights = _weights(f(near) + ERROR)
        self._cells = np.repeat(np.arange(2 * side, dtype=np.int16), self._weights)

        # In each bin, u is below every acceptance probability if it starts with bits below these, placed as in a whole word.
        self._used = CELL_BITS + self._shift
        sure = np.maximum(self._scale * f(far) / self._weights - MARGIN, 0)
        self._sure = np.floor(sure * 2.0 ** (64 - self._used)).astype(np.uint64) << np.uint64(self._used)

    def sample(self, count: int) -> Integers:
        """``count`` independent samples under a fresh key: int64 ``(count,)``."""
        return self._sample(count, Words())

    def _sample(self, count: int, words: Words) -> Integers:
        out = np.empty(count, np.int64)
        refused = []
        for start in range(0, count, BLOCK):
            part = out[start : start + BLOCK]
            refused.append(start + self._propose(part, words))
        again = np.concatenate(refused) if refused else out[:0]
        if len(again):
            out[again] = self._sample(len(again), words)
        return out

    def _propose(self, out: Integers, words: Words) -> Integers:
        """Fill ``out`` with proposals; returns the places of those that were refused."""
        drawn = words.take(len(out))
        bins = self._cells.take((drawn & np.uint64(CELLS - 1)).view(np.int64)).astype(np.int64)
        offsets = ((drawn >> np.uint64(CELL_BITS)) & np.uint64((1 << self._shift) - 1)).view(np.int64)
        np.left_shift(bins, self._shift, out=out)
        out += offsets
        out += self._first
        open_ = np.flatnonzero(drawn >= self._sure.take(bins))
        accepted = self._accepted(out[open_], self._weights[bins[open_]], drawn[open_] >> np.uint64(self._used), words)
        return open_[~accepted]

    def _accepted(self, x: Integers, weights: Integers, first: npt.NDArray[np.uint64], words: Words) -> npt.NDArray[np.bool_]:
        """Whether ``u < scale * f(x) / weights``, where ``u`` has the bits ``first`` and then fresh ones."""
        more = words.take(len(x))
        u = (first + more * 2.0**-64) * 2.0 ** (self._used - 64)
        ahead = self._scale * self._f(x) / weights - u
        accepted = ahead > 0
        for i in np.flatnonzero(np.abs(ahead) <= MARGIN):
            accepted[i] = self._decided(int(x[i]), int(weights[i]), int(first[i]) << 64 | int(more[i]), words)
        return accepted

    def _decided(self, x: int, weight: int, u: int, words: Words) -> bool:
        """The same for one ``x``, where the first bits of the uniform number are those of the integer ``u``: in integers alone."""
        bits = 128 - self._used
        while True:
            low, high = self._enclosed(x, bits)
            if (u + 1) * weight <= self._scale * low:
                return True
            if u * weight >= self._scale * high:
                return False
            u, bits = u << 64 | int(words.take(1)[0]), bits + 64


def _weights(tops: Floats) -> tuple[int, Integers]:
    """The largest whole ``scale`` for which weights ``>= scale * tops`` fill no more than the cells; the first bins get what is over.

    ``tops``: at least ``f`` of every integer in the bin, float64 ``(bins,)``.
    """
    low, high = 1, CELLS
    while low < high:
        scale = (low + high + 1) // 2
        low, high = (scale, high) if np.ceil(scale * tops).sum() <= CELLS else (low, scale - 1)
    weights = np.ceil(low * tops).astype(np.int64)
    weights[np.argmax(tops)] += CELLS - weights.sum()
    return low, weights

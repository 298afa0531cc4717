"""Numbers of b bits without the zero bits above them: what makes a ciphertext of a 38-bit prime 38 and not 64 bits a coefficient."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def pack(words: Words, bits: int) -> npt.NDArray[np.uint8]:
    """Words below ``2**bits``, shape ``(rows, n)``, as ``n * bits / 8`` bytes a row; n is a multiple of 64.

    A row is cut into sections; the words at the same place of each section lie behind one another in the packed words of that place. So
    all shifts work on contiguous runs.
    """
    sections, per, width = _sections(words.shape[1], bits)
    cut = words.reshape(len(words), sections, width)
    out = np.zeros((len(words), per, width), "<u8")
    for index in range(sections):
        word, shift = divmod(index * bits, 64)
        out[:, word] |= cut[:, index] << np.uint64(shift)
        if shift + bits > 64:
            out[:, word + 1] |= cut[:, index] >> np.uint64(64 - shift)
    return out.reshape(-1).view(np.uint8)


def unpack(packed: bytes | memoryview, bits: int, n: int) -> Words:
    """The inverse of :func:`pack`: shape ``(rows, n)``, every word below ``2**bits``."""
    sections, per, width = _sections(n, bits)
    words: npt.NDArray[Any] = np.frombuffer(packed, np.uint8).view("<u8").reshape(-1, per, width)
    out = np.empty((len(words), sections, width), np.uint64)
    for index in range(sections):
        word, shift = divmod(index * bits, 64)
        np.right_shift(words[:, word], np.uint64(shift), out=out[:, index])
        if shift + bits > 64:
            out[:, index] |= words[:, word + 1] << np.uint64(64 - shift)
    out &= np.uint64((1 << bits) - 1)
    return out.reshape(len(words), n)


def row_bytes(n: int, bits: int) -> int:
    """Bytes of one packed row of n words."""
    return n * bits // 8


def _sections(n: int, bits: int) -> tuple[int, int, int]:
    """(sections of a row, packed words that hold one word of each section, words of a section)."""
    common = gcd(bits, 64)
    return 64 // common, bits // common, n // (64 // common)

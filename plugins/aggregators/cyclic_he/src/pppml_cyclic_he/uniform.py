"""Uniform residues from a seed, and sums of residues: the self-masks and the additive shares of the ring."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from pppml_core.interfaces.he import Residues

SEED_BYTES = 32
#: words of keystream expanded at once: 256 KiB, which stay in cache.
_WORDS = 65_536


def residues(seed: bytes, length: int, modulus: int) -> Residues:
    """``length`` numbers, exactly uniform in [0, modulus), uint64; 2 <= modulus < 2**63.

    The keystream of AES-256-CTR under ``seed`` (32 bytes, counter from zero) as little-endian words of 4 bytes, 8 where the modulus needs
    them; each word's lowest bits, as many as the modulus has, are kept where they are below the modulus (rejection sampling: at least half
    are). A seed is used for one vector only.
    """
    bits = (modulus - 1).bit_length()
    word = np.dtype("<u4" if bits <= 32 else "<u8")
    low = word.type((1 << bits) - 1)
    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor()
    out = np.empty(length, np.uint64)
    filled = 0
    while filled < length:
        wanted = min(_WORDS, 2 * (length - filled))
        words = np.frombuffer(stream.update(bytes(wanted * word.itemsize)), word) & low
        kept = words[words < modulus][: length - filled]
        out[filled : filled + len(kept)] = kept
        filled += len(kept)
    return out


def add(total: Residues, other: Residues, modulus: int) -> None:
    """``total += other`` modulo the modulus (at most 2**63), in place."""
    total += other
    np.subtract(total, np.uint64(modulus), out=total, where=total >= modulus)


def subtract(total: Residues, other: Residues, modulus: int) -> None:
    """``total -= other`` modulo the modulus (at most 2**63), in place."""
    total += np.uint64(modulus) - other
    np.subtract(total, np.uint64(modulus), out=total, where=total >= modulus)

"""Masks: the keystream of AES-256 in counter mode (NIST SP 800-38A), as words modulo 2**32 or 2**64, exactly uniform.

Every mask of this package, at a site and at the server, is expanded by :func:`add_mask`, looked up in this module when it is called: put
another function with the same parameters in its place (``monkeypatch.setattr(masks, "add_mask", ...)``) and no other mask is ever added.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

KEY_BYTES = 32
#: bytes expanded at once: they stay in the cache between the cipher and the addition, and no mask is ever held whole.
CHUNK = 131_072
_ZEROS = memoryview(bytes(CHUNK))


def add_mask(total: Words, key: bytes, sign: int) -> None:
    """``total += sign * PRG(key)`` in place.

    Args:
        total: uint32 or uint64, shape ``(length,)``; sums wrap around.
        key: 32 bytes, used for this one mask only: the counter starts at zero.
        sign: 1 or -1.

    The keystream is read as little-endian words.
    """
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    # `update_into` asks for room for one block more than it writes.
    buffer = bytearray(min(CHUNK, total.nbytes) + 15)
    words = np.frombuffer(buffer, total.dtype.newbyteorder("<"), (len(buffer) - 15) // total.itemsize)
    apply = np.add if sign > 0 else np.subtract
    step = CHUNK // total.itemsize
    for start in range(0, len(total), step):
        part = total[start : start + step]
        stream.update_into(_ZEROS[: part.nbytes], buffer)
        apply(part, words[: len(part)], out=part)


def add_masks(total: Words, keyed: Iterable[tuple[bytes, int]]) -> None:
    """All masks, each given as ``(key, sign)``, one after the other."""
    for key, sign in keyed:
        add_mask(total, key, sign)

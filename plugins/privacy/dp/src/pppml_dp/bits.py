"""Uniform random bits for noise: the keystream of AES-256 in counter mode (NIST SP 800-38A) under a key from the operating system."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from pppml_core.randomness import entropy

_ZEROS = memoryview(bytes(131_072))


class Words:
    """A stream of uniform 64-bit words under a fresh key, which nothing else ever uses."""

    def __init__(self) -> None:
        self._stream = Cipher(AES(entropy(32)), CTR(bytes(16))).encryptor()

    def take(self, count: int) -> npt.NDArray[np.uint64]:
        """The next ``count`` words, uint64 ``(count,)``, read-only."""
        zeros = _ZEROS if 8 * count <= len(_ZEROS) else memoryview(bytes(8 * count))
        return np.frombuffer(self._stream.update(zeros[: 8 * count]), "<u8")

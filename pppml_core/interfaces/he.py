"""HE back ends: additively homomorphic encryption of whole vectors.

Keys, ciphertexts and parameters are bytes that only the back end reads; a back end is a handful of functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec


@dataclass(frozen=True)
class HEParams:
    """Public parameters for one session, chosen for the value, the number of additions and 128-bit security."""

    scheme: str
    arithmetic: Literal["exact", "approximate"]
    plaintext_modulus: int | None
    details: dict[str, Any]


class HEBackend(ABC):
    """Encrypts, adds and decrypts integer vectors."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def plan(self, value: ValueSpec, additions: int) -> HEParams:
        """Parameters, or PlanRefused with the reason."""

    @abstractmethod
    def keygen(self, params: HEParams) -> tuple[bytes, Secret]:
        """A public key and its secret key."""

    @abstractmethod
    def encrypt(self, params: HEParams, public: bytes, values: npt.NDArray[np.int64]) -> bytes:
        """A fresh ciphertext of a whole vector, shape ``(length,)``."""

    @abstractmethod
    def add(self, params: HEParams, left: bytes, right: bytes) -> bytes:
        """A ciphertext of the coordinate-wise sum."""

    @abstractmethod
    def decrypt(self, params: HEParams, secret: Secret, ciphertext: bytes) -> npt.NDArray[np.int64]:
        """The vector, shape ``(length,)``."""

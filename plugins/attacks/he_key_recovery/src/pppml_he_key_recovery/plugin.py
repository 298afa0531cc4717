"""The hook: one attack."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_he_key_recovery.config import HeKeyRecoveryConfig


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``he-key-recovery``."""
    return (
        Component(
            name="he-key-recovery",
            config=HeKeyRecoveryConfig,
            target="pppml_he_key_recovery.attack:HeKeyRecovery",
            summary="the secret key of CKKS from ciphertexts and published sums, and with it a site's update",
            needs=("zstandard",),
            cites=(
                "Li and Micciancio 2021, On the Security of Homomorphic Encryption on Approximate Numbers, EUROCRYPT, eprint 2020/1533",
            ),
        ),
    )

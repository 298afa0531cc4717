"""The hook: one HE back end, ``pyfhel``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_he_pyfhel.config import PyfhelConfig


@hookimpl
def pppml_he_backends() -> Sequence[Component]:
    """Pyfhel."""
    return (
        Component(
            name="pyfhel",
            config=PyfhelConfig,
            target="pppml_he_pyfhel.backend:PyfhelBackend",
            summary="BFV, BGV and CKKS with Pyfhel (Microsoft SEAL): smallest ciphertexts, quickest encryption",
            needs=("Pyfhel",),
            cites=(
                "Fan and Vercauteren 2012, Somewhat practical fully homomorphic encryption, IACR 2012/144 (BFV)",
                "Brakerski, Gentry and Vaikuntanathan 2012, doi:10.1145/2090236.2090262 (BGV)",
                "Cheon et al. 2017, doi:10.1007/978-3-319-70694-8_15 (CKKS)",
                "Albrecht et al. 2018, Homomorphic Encryption Standard, HomomorphicEncryption.org",
                "Ibarrondo and Viand 2021, Pyfhel, doi:10.1145/3474366.3486923",
            ),
        ),
    )

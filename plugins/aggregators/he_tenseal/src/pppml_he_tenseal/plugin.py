"""The hook: one HE back end, ``tenseal``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_he_tenseal.config import TenSEALConfig


@hookimpl
def pppml_he_backends() -> Sequence[Component]:
    """TenSEAL."""
    return (
        Component(
            name="tenseal",
            config=TenSEALConfig,
            target="pppml_he_tenseal.backend:TenSEALBackend",
            summary="BFV and CKKS with TenSEAL (Microsoft SEAL): wheels for every platform, nothing to build",
            needs=("tenseal",),
            cites=(
                "Fan and Vercauteren 2012, Somewhat practical fully homomorphic encryption, IACR 2012/144 (BFV)",
                "Cheon et al. 2017, doi:10.1007/978-3-319-70694-8_15 (CKKS)",
                "Albrecht et al. 2018, Homomorphic Encryption Standard, HomomorphicEncryption.org",
                "Benaissa et al. 2021, TenSEAL, arXiv:2104.03152",
                "Zhou et al. 2024, PPPML-HMI, doi:10.1016/j.compbiomed.2023.107861 (preset paper)",
            ),
        ),
    )

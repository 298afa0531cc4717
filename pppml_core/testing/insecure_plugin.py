"""A plugin module that offers the INSECURE example sums and the INSECURE HE back end, for tests. No entry point names it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from pppml_core.component import Component, ComponentConfig
from pppml_core.hookspecs import hookimpl


class InsecureSumConfig(ComponentConfig):
    """No settings."""


class TransparentConfig(ComponentConfig):
    """Of the back end that encrypts nothing."""

    modulus: int = Field(1_032_193, ge=17, lt=2**62, description="plaintext modulus, a prime")
    security_bits: int = Field(0, ge=0, description="what its parameters claim, for tests of protocols that insist on 128; the truth is 0")


@hookimpl
def pppml_aggregators() -> Sequence[Component]:
    """``insecure-masked-sum`` and ``insecure-ring``."""
    return [
        Component(
            "insecure-masked-sum",
            InsecureSumConfig,
            "pppml_core.testing.insecure:InsecureMaskedSum",
            "INSECURE example for tests: the shape of a masked sum with dropout recovery",
            cites=("the shape of Bonawitz et al. 2017, doi:10.1145/3133956.3133982, without its cryptography",),
        ),
        Component(
            "insecure-ring",
            InsecureSumConfig,
            "pppml_core.testing.insecure:InsecureRing",
            "INSECURE example for tests: the shape of a ring sum over a relay",
            cites=("the shape of the ring of PPPML-HMI, without its encryption",),
        ),
    ]


@hookimpl
def pppml_he_backends() -> Sequence[Component]:
    """``insecure-transparent``."""
    return [
        Component(
            "insecure-transparent",
            TransparentConfig,
            "pppml_core.testing.transparent_he:TransparentBackend",
            "INSECURE double for tests: an HE back end that encrypts nothing",
            cites=("the interface of pppml_core.interfaces.he, without any encryption",),
        ),
    ]

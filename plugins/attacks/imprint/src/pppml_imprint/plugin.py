"""The hooks: the attack, and a network that it reads."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_imprint.config import ImprintConfig, ImprintFrontConfig

_PAPER = "Fowl et al. 2022, Robbing the Fed, arXiv:2110.13057"


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``imprint``."""
    return (
        Component(
            name="imprint",
            config=ImprintConfig,
            target="pppml_imprint.attack:Imprint",
            summary="reads images out of the update of a first linear layer, through sums where the server planted it",
            needs=("torch", "scipy"),
            cites=(_PAPER, "Phong et al. 2017, Privacy-Preserving Deep Learning: Revisited and Enhanced, doi:10.1007/978-981-10-5421-1_9"),
        ),
    )


@hookimpl
def pppml_models() -> Sequence[Component]:
    """``imprint-front``."""
    return (
        Component(
            name="imprint-front",
            config=ImprintFrontConfig,
            target="pppml_imprint.front:ImprintFrontModel",
            summary="another network behind a linear layer on the whole image: what a lying server would get agreed to",
            needs=("torch",),
            cites=(_PAPER,),
        ),
    )

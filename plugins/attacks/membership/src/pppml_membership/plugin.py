"""The hook: one attack."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_membership.config import MembershipConfig


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``membership``."""
    return (
        Component(
            name="membership",
            config=MembershipConfig,
            target="pppml_membership.attack:Membership",
            summary="tells which images the watched site trained on, by RMIA, LiRA, agreement with its update, or the loss",
            cites=(
                "Zarifzadeh et al. 2024, Low-Cost High-Power Membership Inference Attacks (RMIA), arXiv:2312.03262",
                "Carlini et al. 2022, Membership Inference Attacks From First Principles (LiRA), arXiv:2112.03570",
                "Yeom et al. 2018, Privacy Risk in Machine Learning, arXiv:1709.01604",
            ),
        ),
    )

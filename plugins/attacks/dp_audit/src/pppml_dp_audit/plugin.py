"""The hook: one attack."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_dp_audit.config import DpAuditConfig


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``dp-audit``."""
    return (
        Component(
            name="dp-audit",
            config=DpAuditConfig,
            target="pppml_dp_audit.attack:DpAudit",
            summary="an empirical lower bound of epsilon, from canaries in the replayed mechanism",
            cites=(
                "Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run, arXiv:2305.08846",
                "Nasr et al. 2023, Tight Auditing of Differentially Private Machine Learning, arXiv:2302.07956",
            ),
        ),
    )

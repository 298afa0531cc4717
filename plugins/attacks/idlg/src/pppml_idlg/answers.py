"""An attack's answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Reconstruction
from pppml_idlg.evidence import Evidence
from pppml_idlg.matching import Effort


def answer(
    evidence: Evidence,
    unit: torch.Tensor,
    labels: npt.NDArray[np.int64],
    effort: Effort,
    loss: float,
    rule: str = "",
    restarts: int = 1,
) -> Reconstruction:
    """Images of the unit scale in the task's units, and the labels of one site's share of them, the surest first.

    ``rule``: of label inference, told in the effort as ``label_rule_NAME``.
    """
    images = evidence.images(unit.detach()).to(torch.float32).numpy()
    told = {
        "evaluations": float(effort.evaluations),
        "seconds": effort.spent,
        "loss": float(loss),
        "restarts": float(restarts),
    }
    if rule:
        told[f"label_rule_{rule.replace('-', '_')}"] = 1.0
    return Reconstruction({"images": images, "labels": np.asarray(labels[: evidence.own], np.int64)}, told)

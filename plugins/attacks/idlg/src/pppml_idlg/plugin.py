"""The hook: four gradient matching attacks."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_idlg.config import DlgConfig, IdlgConfig, IdlgPublishedConfig, InvertingGradientsConfig, SigmoidLenetConfig

_DLG = "Zhu, Liu and Han 2019, Deep Leakage from Gradients, arXiv:1906.08935"
_IDLG = "Zhao, Mopuri and Bilen 2020, iDLG: Improved Deep Leakage from Gradients, arXiv:2001.02610"
_GEIPING = "Geiping et al. 2020, Inverting Gradients: How easy is it to break privacy in federated learning?, arXiv:2003.14053"


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``dlg``, ``idlg-published``, ``idlg`` and ``inverting-gradients``."""
    return (
        Component(
            name="dlg",
            config=DlgConfig,
            target="pppml_idlg.published:Dlg",
            summary="redraws image and soft label jointly by gradient matching, as published",
            cites=(_DLG,),
        ),
        Component(
            name="idlg-published",
            config=IdlgPublishedConfig,
            target="pppml_idlg.published:IdlgPublished",
            summary="names the label by the sign rule and redraws the image, with the published recipe",
            cites=(_IDLG,),
        ),
        Component(
            name="idlg",
            config=IdlgConfig,
            target="pppml_idlg.hardened:Idlg",
            summary="iDLG with a robust solver that models clip, noise, several steps and sums",
            cites=(_IDLG,),
        ),
        Component(
            name="inverting-gradients",
            config=InvertingGradientsConfig,
            target="pppml_idlg.inverting:InvertingGradients",
            summary="redraws images by the direction of the update and a smoothness prior",
            cites=(_GEIPING,),
        ),
    )


@hookimpl
def pppml_models() -> Sequence[Component]:
    """``sigmoid-lenet``."""
    return (
        Component(
            name="sigmoid-lenet",
            config=SigmoidLenetConfig,
            target="pppml_idlg.lenet:SigmoidLenet",
            summary="the small sigmoid network on which gradient matching was published: the attacker's best case",
            cites=(_DLG, _IDLG),
        ),
    )

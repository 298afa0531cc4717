"""The hook: seven local learning rules."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_personalization_baselines import config

PACKAGE = "pppml_personalization_baselines"


@hookimpl
def pppml_personalizations() -> Sequence[Component]:
    """``fedavg-finetune``, ``fedprox``, ``fedbn``, ``ditto``, ``fedper``, ``fedrep``, ``apfl``."""
    return (
        Component(
            name="fedavg-finetune",
            config=config.FineTuneConfig,
            target=f"{PACKAGE}.finetune:FineTune",
            summary="FedAvg; each site trains the shared model on before it uses it",
            cites=("Yu, Bagdasaryan and Shmatikov 2020, arXiv:2002.04758", "McMahan et al. 2017, arXiv:1602.05629"),
        ),
        Component(
            name="fedprox",
            config=config.FedProxConfig,
            target=f"{PACKAGE}.fedprox:FedProx",
            summary="one model for all; local training is pulled towards it",
            cites=("Li et al. 2020, FedProx, arXiv:1812.06127",),
        ),
        Component(
            name="fedbn",
            config=config.FedBNConfig,
            target=f"{PACKAGE}.fedbn:FedBN",
            summary="normalization layers stay at the site, the rest is shared",
            cites=("Li et al. 2021, FedBN, arXiv:2102.07623",),
        ),
        Component(
            name="ditto",
            config=config.DittoConfig,
            target=f"{PACKAGE}.ditto:Ditto",
            summary="a personal model at each site, pulled towards the shared one",
            cites=("Li et al. 2021, Ditto, arXiv:2012.04221",),
        ),
        Component(
            name="fedper",
            config=config.FedPerConfig,
            target=f"{PACKAGE}.fedper:FedPer",
            summary="shared body, personal head, trained together",
            cites=("Arivazhagan et al. 2019, FedPer, arXiv:1912.00818",),
        ),
        Component(
            name="fedrep",
            config=config.FedRepConfig,
            target=f"{PACKAGE}.fedrep:FedRep",
            summary="shared body, personal head, the head trained first",
            cites=("Collins et al. 2021, FedRep, arXiv:2102.07089",),
        ),
        Component(
            name="apfl",
            config=config.APFLConfig,
            target=f"{PACKAGE}.apfl:APFL",
            summary="a personal model at each site, mixed with the shared one",
            cites=("Deng, Kamani and Mahdavi 2020, APFL, arXiv:2003.13461",),
        ),
    )

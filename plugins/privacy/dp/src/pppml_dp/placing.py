"""Where noise is added, against whom that helps, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pppml_core.interfaces.privacy import PrivacySetting, PrivacyStatement


def honest_shares(placement: str, setting: PrivacySetting, colluders: int) -> int:
    """Shares of noise that are in every opened sum and unknown to the adversary; one where a single party adds all of it."""
    return setting.min_survivors - colluders if placement == "distributed" else 1


def adversary(placement: str, setting: PrivacySetting, colluders: int) -> str:
    """Against whom the claim holds, in words."""
    if placement == "local":
        return "anyone who sees what leaves a site: the server, the other sites, whoever gets the model"
    if placement == "distributed":
        if not colluders:
            no_site = "but no site, each of which knows its own share of the noise"
            return f"whoever sees the secure sums and keeps to their protocol, or gets the model, {no_site}"
        sites = _sites(colluders)
        # Secure sums withstand fewer parties that lie, some none, and `misfits` counts those that are curious.
        who = f"the server together with {sites}, {sites} alone, and whoever gets the model"
        return f"anyone who sees the secure sums and keeps to their protocol: {who}"
    return "whoever gets the model, not the server, which is trusted to see the sums and to add the noise"


def noise_in_sum(placement: str, variance: float, sites: int) -> float:
    """Standard deviation, in steps of the grid, of all the noise in a sum over ``sites`` sites."""
    return math.sqrt(variance if placement == "server" else variance * sites)


def misfits(placement: str, setting: PrivacySetting, colluders: int, shares: bool) -> list[str]:
    """Why noise at this placement would not protect what is claimed."""
    if placement == "local":
        return []
    out = []
    if not shares:
        out.append(f"placement {placement}: nothing is summed here, so no noise would ever be added; use placement local")
    elif placement == "distributed" and setting.cohort < 2:
        out.append("placement distributed: all data are at one place, so there is no sum to which others add noise; use placement local")
    elif placement == "distributed" and setting.sees_update:
        out.append(
            f"placement distributed: {_and(setting.sees_update)} would read each site's own update, which carries only a share of noise; "
            "use a secure sum (secagg-plus, cyclic-he) or placement local"
        )
    elif placement == "distributed" and colluders > setting.coalition:
        out.append(
            f"placement distributed: {_sites(colluders)} may collude (colluders), and the secure sum withstands {setting.coalition}: they "
            "could read one site's update, which carries only a share of noise; use another aggregator, or lower colluders"
        )
    elif placement == "distributed" and honest_shares(placement, setting, colluders) < 1:
        out.append(
            f"placement distributed: a sum may be opened over {setting.min_survivors} of {setting.cohort} sites, and {colluders} of them "
            "may tell their share of the noise, which leaves none; raise the aggregator's threshold or lower colluders"
        )
    elif placement == "server" and setting.sees_sum != ("server",):
        out.append(
            f"placement server: {_and(setting.sees_sum)} would read the sum before the server has noised it; use an aggregator whose sum "
            "only the server reads, or placement distributed"
        )
    return out


def delta_misfits(delta: float, units: int, whose: str) -> list[str]:
    """Why this delta is no protection: it must be below one over the number of protected units."""
    if delta < 1 / units:
        return []
    return [
        f"delta: {delta:g} is not below 1/{units:,} ({whose}): publishing one unit's data outright at random would satisfy it; "
        f"use at most {10 ** math.floor(-math.log10(units) - 1e-9):.0e}"
    ]


def _sites(count: int) -> str:
    return "one site" if count == 1 else f"{count} sites"


def _and(parties: Sequence[str]) -> str:
    return " and ".join(parties)


def unprotected(unit: str, details: dict[str, Any]) -> PrivacyStatement:
    """What holds without noise: nothing."""
    return PrivacyStatement("clip-only", math.inf, unit=unit, adversary="none: without noise nothing is guaranteed", details=details)

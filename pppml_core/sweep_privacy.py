"""What choosing among noised runs costs: the scores that are compared are of models which were all made of the same images.

A claim is for one run. Whoever compares several and keeps the best has used all of them, so the choice costs what their ledgers hold
together (basic adaptive composition; Papernot and Steinke 2022, arXiv:2110.03620, on why one run's epsilon is not enough).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pppml_core.errors import PppmlError
from pppml_core.federation.ledger import Ledger
from pppml_core.interfaces.privacy import condition_words

Charges = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Noised:
    """A run with a claim: the claim's plain form, the config's section, and the charges of its fullest ledger."""

    claim: Mapping[str, Any]
    section: Mapping[str, Any]
    charges: Charges


def choice_notes(folders: Iterable[Path]) -> list[str]:
    """What to say below a table of these runs. Nothing where none is noised, or only one run was begun.

    Charges of one kind (mechanism, unit, adjacency) are composed; of several kinds it is said that they are not.

    A run that failed counts with what it was charged: its data were used.
    """
    noised: dict[tuple[str, ...], list[Noised]] = {}
    bare = 0
    for folder in folders:
        claim = _claim(folder)
        if claim.get("epsilon") in (None, "inf"):
            bare += (folder / "result.json").exists()
        elif charges := _charges(folder):
            kind = tuple(str(claim[name]) for name in ("mechanism", "unit", "adjacency"))
            noised.setdefault(kind, []).append(Noised(claim, _section(folder), charges))
    out = [_words(runs) for runs in noised.values() if len(runs) > 1]
    if len(noised) > 1:
        kinds = ", ".join(f"{len(runs)} of {kind[0]} with unit {kind[1]}" for kind, runs in noised.items())
        what = "choosing among all of them costs more than any kind alone, and is not summed"
        out.append(f"Noised runs of {len(noised)} kinds ({kinds}): {what}.")
    if noised and bare:
        many, verb = ("s", "are") if bare > 1 else ("", "is")
        out.append(f"{bare} run{many} of this table {verb} without noise: nothing bounds what choosing by their scores reveals.")
    return out


def _words(runs: Sequence[Noised]) -> str:
    start = f"Choosing among {len(runs)} runs of {runs[0].claim['mechanism']} by their scores"
    try:
        epsilon = _epsilon(runs)
    except PppmlError as error:
        return f"{start} costs more privacy than one of them does; how much cannot be told here: {error.message}."
    if epsilon is None:
        return f"{start} costs more privacy than one of them does; the mechanism does not say how much."
    return f"{start} costs epsilon {epsilon:.4g} in all ({condition_words(_together([run.claim for run in runs]))})."


def _epsilon(runs: Sequence[Noised]) -> float | None:
    """At the largest delta of the runs, of all their charges."""
    from pppml_core.registry import Registry

    section = dict(max(runs, key=lambda run: float(run.claim["delta"])).section)
    component = Registry.discover().get("privacy", section.pop("use", ""))
    mechanism = component.load()(component.config.model_validate(section))
    found = mechanism.spent([charge for run in runs for charge in run.charges])
    return None if found is None else float(found)


def _together(claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The conditions under which all of these claims hold."""
    placements, adversaries = (list(dict.fromkeys(str(c[name]) for c in claims)) for name in ("placement", "adversary"))
    return {
        **claims[0],
        "delta": max(float(c["delta"]) for c in claims),
        "accountant": max(str(c["accountant"]) for c in claims),  # rdp where one of them needs it
        "placement": " and ".join(placements),
        "adversary": adversaries[0] if len(adversaries) == 1 else "only those against whom each of these runs claims to hold",
    }


def _claim(folder: Path) -> Mapping[str, Any]:
    """Of the result, or of the plan where the run has none."""
    for name in ("result.json", "plan.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))["privacy"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(found, Mapping) and "mechanism" in found:
            return found
    return {}


def _section(folder: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load((folder / "config.resolved.yaml").read_text(encoding="utf-8"))["privacy"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _charges(folder: Path) -> Charges:
    """Of the site that was charged most often, or of the server: each ledger holds all that was made of one site's images."""
    found = [Ledger(path).entries() for path in (folder / "ledger.jsonl", *sorted(folder.glob("sites/*/ledger.jsonl")))]
    return max(found, key=len)

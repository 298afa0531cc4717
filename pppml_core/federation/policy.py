"""A site's own policy: checked against a round's announced terms, and the weights it begins with, before any plugin code sees them.

It is held in the site's home as ``policy.yaml``, a map of the settings of :class:`Policy`; without the file the defaults hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pppml_core.config.source import load_yaml
from pppml_core.errors import ConfigError, PolicyRefusal, nearest
from pppml_core.federation.identity import refuse_writable
from pppml_core.interfaces.privacy import CONDITIONS, condition_words

POLICY_FILE = "policy.yaml"


class Policy(BaseModel):
    """What a site insists on, held locally; the server cannot change it.

    The defaults accept everything a configuration may say, and no weights that look made to read images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_cohort: int = Field(1, ge=1, description="fewest sites of a round, and of a sum, this site takes part in")
    max_epsilon: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="largest epsilon the terms may announce; null: any, also no claim at all"
    )
    plain_updates: bool = Field(True, description="whether anybody may see this site's own update")
    max_colluders: int = Field(
        1, ge=0, description="how many other sites may work with the server without learning this site's update from a secure sum"
    )
    min_honest: int = Field(2, ge=2, description="fewest sites besides those whose updates must be mixed")
    min_degree: int = Field(2, ge=1, description="fewest neighbours on a sparse graph of masks")
    vet_weights: bool = Field(True, description="whether weights are refused that no training makes, but a server that reads images does")
    record_secrets: bool = Field(
        False, description="whether this site's keys and updates may be written down for experiments (run.transcript: secrets)"
    )

    def check(self, terms: Mapping[str, Any]) -> None:
        """Raise PolicyRefusal naming the first rule the terms break."""
        cohort = terms["cohort"]
        if len(set(cohort)) < self.min_cohort:
            raise PolicyRefusal(f"min_cohort: {len(set(cohort))} sites announced, at least {self.min_cohort} required")
        epsilon = terms["privacy"].get("epsilon")
        # An infinite epsilon comes as the text `inf`.
        if self.max_epsilon is not None and not (isinstance(epsilon, float | int) and epsilon <= self.max_epsilon):
            said = "none" if epsilon is None else f"{epsilon:g}" if isinstance(epsilon, float | int) else str(epsilon)
            conditions = "" if epsilon is None else f" ({_conditions(terms['privacy'])})"
            raise PolicyRefusal(f"max_epsilon: {said} announced, at most {self.max_epsilon:g} allowed{conditions}")
        self._check_secrecy(terms["guarantees"])

    def _check_secrecy(self, promised: Mapping[str, Any]) -> None:
        if not self.plain_updates and promised["sees_update"]:
            raise PolicyRefusal(f"plain_updates: {', '.join(promised['sees_update'])} would see this site's update")
        if promised["sees_update"] or "coalition_curious" not in promised:
            return  # a sum in the clear, which this policy allows, or no sum at all
        # The default of max_colluders is for the sums that let a site choose; as a demand it holds where somebody demanded it.
        demanded = not self.plain_updates or "max_colluders" in self.model_fields_set
        if demanded and promised["coalition_curious"] < self.max_colluders:
            text = f"the sum withstands {promised['coalition_curious']} sites that work with the server, {self.max_colluders} are demanded"
            raise PolicyRefusal(f"max_colluders: {text}")


def _conditions(announced: Mapping[str, Any]) -> str:
    """What the announced epsilon is of. Terms come from another party: whatever is missing or long is told as such."""
    said = {}
    for name in CONDITIONS:
        value = announced.get(name)
        said[name] = value if isinstance(value, float | int) else f"{value:.200}" if isinstance(value, str) and value else "not said"
    return condition_words(said)


def load_policy(home: Path) -> Policy:
    """The policy of a home: ``policy.yaml``, or the defaults where there is none. Raises ConfigError that names line and remedy."""
    path = home / POLICY_FILE
    if misspelt := next((p for p in (home / "policy.yml", home / "policy.json") if os.path.lexists(p)), None):
        raise ConfigError(f"the policy is read from {POLICY_FILE} only", place=str(misspelt), hint=f"rename it to {POLICY_FILE}")
    if not os.path.lexists(path):
        return Policy()
    if not path.is_file():
        # A link that leads nowhere, a folder: rules were meant, so none at all is no answer.
        raise ConfigError("the policy is no file", place=str(path), hint="restore it, or remove it to fall back on the stated defaults")
    refuse_writable(path)
    document = load_yaml(path)
    try:
        # Strict, as YAML tells numbers from texts itself: a quoted number is a slip that must not pass for a rule.
        return Policy.model_validate(document.data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, known = str(first["loc"][0]), list(Policy.model_fields)
        place = document.place(tuple(first["loc"]))
        if first["type"] == "extra_forbidden":
            close = nearest(name, known)
            hint = f"did you mean {close!r}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"unknown rule {name!r}", place=place, hint=hint) from error
        said = f"{first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r:.80}"
        raise ConfigError(said, place=place, hint=f"{name}: {Policy.model_fields[name].description}") from error

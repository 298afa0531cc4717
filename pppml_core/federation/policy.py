"""A site's own policy: what it insists on, held in its home as ``policy.yaml``, a map of the settings of :class:`Policy`.

The file names every rule, also those that ask nothing (``null``): where one is missing nothing is answered, so no text that is lost
loosens a rule. Without the file a site that lives by itself answers nothing either. One that an engine starts on one machine needs none:
there the defaults hold, which suit a simulation. What the rules say of a run is in :mod:`.rules`, when they are asked in
:mod:`.admission`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pppml_core.config.source import load_yaml
from pppml_core.errors import ConfigError, PolicyRefusal, nearest
from pppml_core.federation.identity import refuse_writable
from pppml_core.federation.rules import TERMS
from pppml_core.interfaces.privacy import Placement

POLICY_FILE = "policy.yaml"
#: rules whose default is only assumed, and demanded where somebody states it.
UNSTATED = ("max_colluders",)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_HOURS = r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$"


class Pin(BaseModel):
    """The code of a distribution that a site lets take part in runs: its version, the hash of its files, or both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str | None = Field(None, min_length=1)
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.version is None and self.sha256 is None:
            raise ValueError("give version, sha256 or both")
        return self


def rule(default: Any, description: str, *, careful: Any = None, example: Any = None, **limits: Any) -> Any:
    """A rule: its default, which suits a simulation; what a hospital begins with (None: it asks nothing); what may stand there then."""
    return Field(default, description=description, json_schema_extra={"careful": careful, "example": example}, **limits)


class Policy(BaseModel):
    """What a site insists on, held locally; the server cannot change it.

    The defaults accept everything a configuration may say, but for code that nobody named here (``python``) and weights that look made to
    read images. A home's file names every rule. The last one is a yes or no, of which no part is another value: it ends what
    `pppml site init` writes. docs/policy.md has a page on each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # -- with whom
    min_cohort: int = rule(1, "fewest sites of a round, and of a sum, this site takes part in", careful=3, ge=1)
    plain_updates: bool = rule(True, "whether anybody may see this site's own update", careful=False)
    max_colluders: int = rule(
        1,
        "how many other sites may work with the server without learning this site's update from a secure sum; null: 1 unless plain_updates",
        careful=1,
        ge=0,
    )
    min_honest: int = rule(2, "fewest sites besides those whose updates must be mixed", careful=2, ge=2)
    min_degree: int = rule(2, "fewest neighbours on a sparse graph of masks", careful=2, ge=1)
    hand_on: bool = rule(True, "whether this site may hand messages of a relay on to other sites, past the coordinator", careful=True)

    # -- what runs here
    components: list[str] | None = rule(
        None,
        "names of the tasks, models, methods, mechanisms, sums and back ends a run may use; null: any",
        example=["unet", "secagg-plus"],
    )
    python: list[str] | None = rule(
        [], "own code, module:attribute, that a run may name beside components of plugins; null: any", careful=[]
    )
    own_data: bool = rule(False, "whether only data are read that this site's own site.yaml names, no path of a run's", careful=True)
    code: dict[str, Sha256 | Pin] | None = rule(
        None,
        "code that may run: of every distribution a run uses the hash of its files, or {version, sha256}; null: any",
        example={"pppml-core": {"version": "0.1.0"}},
    )
    same_versions: bool = rule(True, "whether the coordinator's code must be that of this site: versions and files", careful=True)
    models: list[Sha256] | None = rule(
        None,
        "hashes of the networks (names, shapes, dtypes) that may be trained; `pppml site check` prints them; null: any",
        example=["0" * 64],
    )

    # -- what the result may reveal
    mechanisms: list[str] | None = rule(None, "privacy mechanisms one of which must be used; null: any, also none", example=["dp-sgd"])
    placements: list[Placement] | None = rule(
        None,
        "who may add the noise; with `server` the coordinator sees the sum without it; null: anybody",
        example=["local", "distributed"],
    )
    privacy_unit: Literal["example", "patient", "site"] | None = rule(
        None, "whose data a claim of epsilon must protect; null: any, also no claim", example="patient"
    )
    max_epsilon: float | None = rule(
        None, "largest epsilon the terms may announce; null: any, also no claim at all", example=8.0, gt=0, allow_inf_nan=False
    )
    total_epsilon: float | None = rule(
        None,
        "largest epsilon of all runs on this site's data together, by its own account; null: any",
        example=8.0,
        gt=0,
        allow_inf_nan=False,
    )
    total_delta: float = rule(1e-4, "largest delta of all runs together; counts where there is a total_epsilon", careful=1e-4, gt=0, lt=1)
    metrics: Literal["none", "sum", "per-site"] = rule(
        "per-site", "the most of evaluation scores that may leave: none, only in sums over sites, or this site's own", careful="sum"
    )
    fewest_patients: int = rule(
        1, "fewest patients (groups) in a validation or test set whose scores may leave other than in a sum", careful=10, ge=1
    )

    # -- what a round may do
    hours: str | None = rule(
        None, "when this site joins runs and begins rounds, local time, from-to; null: always", example="07:00-19:00", pattern=_HOURS
    )
    max_rounds_per_day: int | None = rule(None, "most rounds this site begins in a day, all runs together; null: any", example=100, ge=1)
    vet_weights: bool = rule(True, "whether weights are refused that no training makes, but a server that reads images does", careful=True)
    record_secrets: bool = rule(
        False, "whether this site's keys and updates may be written down for experiments (run.transcript: secrets)", careful=False
    )

    @model_validator(mode="before")
    @classmethod
    def _unstated(cls, said: Any) -> Any:
        """Null is as if it were not said, where that differs from the default said out loud (see ``rules``)."""
        if not isinstance(said, Mapping):
            return said
        return {name: value for name, value in said.items() if value is not None or name not in UNSTATED}

    @field_validator("hours")
    @classmethod
    def _some_hours(cls, value: str | None) -> str | None:
        if value is not None and value[:5] == value[6:]:
            raise ValueError("begin and end are the same")
        return value

    def check(self, terms: Mapping[str, Any]) -> None:
        """Raise PolicyRefusal naming the first rule the terms of a round, or of a run, break."""
        for name, broken in TERMS.items():
            if (reason := broken(self, terms)) is not None:
                raise PolicyRefusal(f"{name}: {reason}")


def careful_value(name: str) -> Any:
    """What `pppml site init` begins with; None: the rule asks nothing."""
    return _shown(name)["careful"]


def example(name: str) -> Any:
    """What may stand there, of a rule that asks nothing in a hospital's first file."""
    return _shown(name)["example"]


def _shown(name: str) -> dict[str, Any]:
    shown = Policy.model_fields[name].json_schema_extra
    assert isinstance(shown, dict)
    return shown


#: rules that are asked when a site is invited, and which a site that an engine starts on one machine is not.
WHEN_INVITED = ("components", "code", "models", "total_epsilon", "hours", "max_rounds_per_day")


def refuse_unheld(policy: Policy, home: Path) -> None:
    """Raise ConfigError where a site that nobody invites has rules that only an invited one holds: a rule is held or it is told."""
    if unheld := [name for name in WHEN_INVITED if getattr(policy, name) is not None]:
        text = f"{', '.join(unheld)}: only a site that lives by itself holds these rules, with an engine for real sites"
        raise ConfigError(text, place=str(home / POLICY_FILE), hint="set them to null for runs on one machine")


def load_policy(home: Path, otherwise: Policy | None = None) -> Policy:
    """The policy of a home, ``policy.yaml``. Raises ConfigError that names line and remedy, also where it does not name every rule.

    ``otherwise``: that of a home without the file, where there may be one.
    """
    path = home / POLICY_FILE
    if misspelt := next((p for p in (home / "policy.yml", home / "policy.json") if os.path.lexists(p)), None):
        raise ConfigError(f"the policy is read from {POLICY_FILE} only", place=str(misspelt), hint=f"rename it to {POLICY_FILE}")
    if not os.path.lexists(path):
        if otherwise is None:
            raise ConfigError("the policy of this site is gone, so it answers nothing", place=str(path), hint=_RESTORE)
        return otherwise
    if not path.is_file():
        # A link that leads nowhere, a folder: rules were meant, so none at all is no answer.
        raise ConfigError("the policy is no file", place=str(path), hint=_RESTORE)
    refuse_writable(path)
    try:
        text = path.read_bytes()
    except OSError:
        return _read(path)  # which says what is wrong with it
    if (held := _READ.get(path)) is not None and held[0] == text:
        return held[1]  # every message is held against the policy as it is now, and reading YAML takes longer than all else of it
    policy = _read(path)
    if path.read_bytes() == text:
        _READ[path] = text, policy
    return policy


_RESTORE = f"restore {POLICY_FILE}"
#: policies as they were read last, with their bytes.
_READ: dict[Path, tuple[bytes, Policy]] = {}


def _read(path: Path) -> Policy:
    document = load_yaml(path)
    try:
        # Strict, as YAML tells numbers from texts itself: a quoted number is a slip that must not pass for a rule.
        said = Policy.model_validate(document.data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, known = str(first["loc"][0]), list(Policy.model_fields)
        place = document.place(tuple(first["loc"]))
        if first["type"] == "extra_forbidden":
            close = nearest(name, known)
            hint = f"did you mean {close!r}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"unknown rule {name!r}", place=place, hint=hint) from error
        told = f"{first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r:.80}"
        raise ConfigError(told, place=place, hint=f"{name}: {Policy.model_fields[name].description}") from error
    missing = [name for name in Policy.model_fields if name not in document.data]
    if len(missing) == len(Policy.model_fields):
        raise ConfigError("no rule stands in the policy of this site, so it answers nothing", place=str(path), hint=_RESTORE)
    if missing:
        which = f"rule {missing[0]} does" if len(missing) == 1 else f"rules {', '.join(missing)} do"
        hint = f"{_RESTORE}, or add what is missing: `pppml site init` in an empty folder shows all rules with what they mean"
        raise ConfigError(f"{which} not stand in {POLICY_FILE}, so this site answers nothing", place=str(path), hint=hint)
    return said

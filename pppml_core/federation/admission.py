"""Whether a site takes part in a run: its policy against an invitation, in three steps, each before what it guards.

Announced terms are checked before any code of a plugin is loaded (:func:`before_code`); names and code before anything is built of them
(:func:`before_building`); what this site would really do, on its own data, before it joins (:func:`after_code`). A check is a function
``(case) -> why the run is refused, or None``, under the name of its rule; the first that objects ends it. `pppml site check` shows all.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pppml_core.component import KINDS
from pppml_core.config import resolve, to_plain
from pppml_core.errors import PolicyRefusal
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.code import ELSEWHERE, Code, code_of_run, used
from pppml_core.federation.evaluation import too_few_patients
from pppml_core.federation.home import Home
from pppml_core.federation.invitation import Invitation, announced
from pppml_core.federation.places import names_a_place
from pppml_core.federation.policy import Pin, Policy
from pppml_core.federation.rules import TERMS, Terms
from pppml_core.federation.secret_record import SECRETS
from pppml_core.federation.site_file import load_site_file
from pppml_core.federation.site_host import SiteHost
from pppml_core.federation.site_ledger import Account, Claim, Limits, claim_of
from pppml_core.registry import Registry
from pppml_core.wire.messages import SERVER

#: Python code that is no component of a plugin, as a config names it.
_ATTRIBUTE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass
class Case:
    """One run at one site, with what is known of it so far."""

    home: Home
    policy: Policy
    asked: Invitation
    account: Account
    #: known before anything is built: the configuration as it is bound here, and the code it would run.
    config: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, Code] = field(default_factory=dict)
    registry: Registry | None = None
    #: known at last: the parts as this site builds them, with its data.
    host: SiteHost | None = None
    #: policy and roster as they are on the disk.
    standing: tuple[bytes, ...] = ()

    @property
    def parts(self) -> Assembly:
        """Built here."""
        assert self.host is not None
        return self.host.assembly

    @property
    def limits(self) -> Limits:
        """Of this site's account."""
        return Limits(self.policy.total_epsilon, self.policy.total_delta)

    @property
    def claim(self) -> Claim:
        """What the run costs, as this site itself computes it."""
        assert self.host is not None
        return claim_of(self.host.privacy.statement, shares=self.parts.personalization.shares)


Check = Callable[[Case], str | None]


def before_code(case: Case) -> None:
    """Raise PolicyRefusal naming the first rule that the announced terms break. No plugin has been loaded yet."""
    _first(ANNOUNCED, case)


def before_building(case: Case, registry: Registry) -> None:
    """Raise PolicyRefusal for names and code that may not run here. Components are described, and nothing is built of them yet."""
    describe(case, registry)
    _first(DESCRIBED, case)


def after_code(case: Case, host: SiteHost) -> None:
    """Raise PolicyRefusal where what this site would really do is not what was announced, or is too much."""
    case.host = host
    _first(BUILT, case)


def describe(case: Case, registry: Registry) -> None:
    """Bind the announced configuration. Raises ConfigError or PluginError where it does not fit what is installed here."""
    case.registry = registry
    case.config = to_plain(resolve(case.asked.config, registry=registry))
    case.code = code_of_run(case.config, registry)


def _first(checks: Mapping[str, Check], case: Case) -> None:
    for name, check in checks.items():
        if (reason := check(case)) is not None:
            raise PolicyRefusal(f"{name}: {reason}")


# -- announced ----------------------------------------------------------------------------------------------------------------------------


def _sites(case: Case) -> str | None:
    here = case.home.name in case.asked.sites
    return None if here else f"this site, {case.home.name}, is none of the sites of this run: {', '.join(case.asked.sites)}"


def _roster(case: Case) -> str | None:
    strangers = [party for party in (*case.asked.sites, SERVER) if party not in case.home.pinned]
    return f"no identity is pinned here for {', '.join(strangers)} (pppml site trust)" if strangers else None


def _whole(case: Case) -> str | None:
    return "it builds on another file (extends), which would be one of this machine" if "extends" in case.asked.config else None


def _of_terms(rule: Callable[[Policy, Terms], str | None]) -> Check:
    return lambda case: rule(case.policy, {"cohort": list(case.asked.sites), **case.asked.terms})


def _hand_on(case: Case) -> str | None:
    """That of a policy, against what is announced; each letter is held against it again."""
    if not case.asked.hand_on or case.policy.hand_on:
        return None
    return "sites would hand messages on to each other; with `engine: {topology: star}` all of them pass the coordinator"


def _record_secrets(case: Case) -> str | None:
    run = case.asked.config.get("run")
    wanted = isinstance(run, Mapping) and run.get("transcript") == SECRETS
    return (
        "this run would write down this site's keys and updates (run.transcript: secrets)"
        if wanted and not case.policy.record_secrets
        else None
    )


def _announced_total(case: Case) -> str | None:
    promised = case.asked.terms["guarantees"]
    shares = bool(promised["sees_update"]) or "coalition_curious" in promised
    return case.account.refusal(case.asked.run, claim_of(case.asked.terms["privacy"], shares=shares), case.limits)


#: of what was announced; nothing of any plugin is loaded.
ANNOUNCED: dict[str, Check] = {
    "sites": _sites,
    "roster": _roster,
    "configuration": _whole,
    **{name: _of_terms(rule) for name, rule in TERMS.items()},
    "hand_on": _hand_on,
    "record_secrets": _record_secrets,
    "total_epsilon": _announced_total,
}

# -- described ----------------------------------------------------------------------------------------------------------------------------


def _configuration(case: Case) -> str | None:
    """What was announced must be all of it: a default, a recipe or a file of this machine would fill a gap with something else."""
    own = {section: value for section, value in case.config.items() if section not in ELSEWHERE}
    other = sorted(section for section in own.keys() | case.asked.config.keys() if own.get(section) != case.asked.config.get(section))
    return f"{', '.join(other)} would be another here than was announced" if other and case.policy.same_versions else None


def _python(case: Case) -> str | None:
    # Whatever the setting is called: a component may import what any of its settings names.
    own = [text for _, text in _texts(case.config) if _ATTRIBUTE.fullmatch(text)]
    strange = [name for name in own if case.policy.python is not None and name not in case.policy.python]
    return f"{strange[0]} is no component of a plugin, and is not listed here" if strange else None


def _texts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(place, text) of every text in the sections that are a site's."""
    return [found for section, value in config.items() if section not in ELSEWHERE for found in _texts_in(section, value)]


def _texts_in(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts_in(f"{place}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(place, inner)


def _own_data(case: Case) -> str | None:
    if not case.policy.own_data:
        return None
    named = load_site_file(case.home.folder).data is not None
    for place, text in _texts(case.asked.config):
        if place == "task.path" and named:
            continue  # this site's own is laid over it
        # Also a folder below the one this process was started in; so no name of anything else may hold a separator.
        if place in ("task.path", "training.init") or names_a_place(text) or {"/", "\\"} & set(text):
            return f"{place} is a path on this machine, or reads like one, and only site.yaml may name one"
    return None


def _components(case: Case) -> str | None:
    allowed = case.policy.components
    strange = [f"{place} {name}" for place, name in _named(case) if allowed is not None and ":" not in name and name not in allowed]
    return f"{', '.join(strange)} is not listed here" if strange else None


def _named(case: Case) -> list[tuple[str, str]]:
    assert case.registry is not None
    return used(case.config, case.registry)


def _code(case: Case) -> str | None:
    if case.policy.code is None:
        return None
    for name, here in sorted(case.code.items()):
        pin = case.policy.code.get(name)
        if pin is None:
            return f"{name} is not listed here"
        wanted = Pin(sha256=pin) if isinstance(pin, str) else pin
        if wanted.version not in (None, here.version):
            return f"{name} {here.version} is installed here, {wanted.version} is pinned"
        if wanted.sha256 not in (None, here.sha256):
            return f"the files of {name} {here.version} here have the hash {here.sha256}, {wanted.sha256} is pinned"
    return None


def _same_versions(case: Case) -> str | None:
    if not case.policy.same_versions:
        return None
    for name in sorted({*case.code, *case.asked.code}):
        here, there = case.code.get(name), case.asked.code.get(name)
        if here is None or there is None:
            return f"{name} is used {'by the coordinator' if here is None else 'here'} only"
        if here.version != there["version"]:
            return f"the coordinator has {name} {there['version']}, this site {here.version}"
        if here.sha256 != there["sha256"]:
            return (
                f"the coordinator's files of {name} {here.version} ({there['sha256'][:16]}...) are not those here ({here.sha256[:16]}...)"
            )
    return None


#: of names and code; nothing is built yet.
DESCRIBED: dict[str, Check] = {
    "python": _python,
    "own_data": _own_data,
    "components": _components,
    "code": _code,
    "same_versions": _same_versions,
    "configuration": _configuration,
}

# -- built --------------------------------------------------------------------------------------------------------------------------------


def _announced(case: Case) -> str | None:
    own = announced(case.parts, case.asked.sizes)
    other = [name for name in own if case.asked.terms[name] != own[name]]
    return f"the announced {', '.join(other)} are not those of this site's configuration" if other else None


def _examples(case: Case) -> str | None:
    held, counted = len(case.parts.load(case.home.name).train), case.asked.sizes[case.home.name]
    return None if held == counted else f"the run counts on {counted} training examples of this site, which has {held}"


def _models(case: Case) -> str | None:
    if case.policy.models is None or (own := model_hash(case.parts)) in case.policy.models:
        return None
    return f"the network has the hash {own}, which is not listed here"


#: of what this site would do, on its own data.
BUILT: dict[str, Check] = {
    "announced": _announced,
    "examples": _examples,
    "models": _models,
    "fewest_patients": lambda case: too_few_patients(case.parts, case.home.name, case.asked.sites, case.policy.fewest_patients),
    "total_epsilon": lambda case: case.account.refusal(case.asked.run, case.claim, case.limits),
}


def model_hash(parts: Assembly) -> str:
    """SHA-256 over names, shapes and dtypes of all parameters and buffers, in their order: a network's architecture, not its weights."""
    _ = parts.model
    told = [[name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for name, tensor in parts.initial_state.items()]
    return hashlib.sha256(json.dumps(told, separators=(",", ":")).encode()).hexdigest()


def about_run(case: Case) -> dict[str, Any]:
    """What logs of this site say of a run that it joined."""
    chosen = {kind: case.config[kind]["use"] for kind in KINDS if isinstance(case.config.get(kind), Mapping)}
    kept = ("task", "model", "personalization", "privacy", "aggregator")
    epsilon = "inf" if math.isinf(case.claim.epsilon) else case.claim.epsilon
    about = {"name": case.config["run"]["name"], "rounds": case.config["run"]["rounds"], "metrics": case.config["run"]["metrics"]}
    return {**about, **{kind: chosen[kind] for kind in kept if kind in chosen}, "epsilon": epsilon}

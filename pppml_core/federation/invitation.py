"""The invitation to a run: what the coordinator tells a site that lives by itself, signed, before anything else.

A site that the coordinator starts is handed its job by whoever started it. A site at a hospital gets it as a message of kind ``join``, and
decides from it, before any code of a plugin sees it, whether it takes part (:mod:`.admission`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pppml_core.errors import WireError
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.code import ELSEWHERE, code_of_run
from pppml_core.federation.evaluation import announced_share
from pppml_core.federation.identity import Identity, statement, verify
from pppml_core.federation.terms import check_promises, promises
from pppml_core.interfaces.aggregation import Session
from pppml_core.interfaces.engine import Job
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER, Body, Message

JOIN = "join"
_PURPOSE = "invitation"
_FORM: dict[str, type] = {"config": dict, "sites": list, "sizes": dict, "code": dict, "terms": dict, "hand_on": bool, "signature": bytes}


@dataclass(frozen=True)
class Invitation:
    """What is asked of a site.

    Args:
        run: 16 bytes that name the run.
        config: resolved, as plain data, without the sections that are not a site's.
        sites: all sites of the run, in the task's order.
        sizes: training examples of each site.
        code: distribution -> ``version`` and ``sha256`` of the code the coordinator runs.
        terms: ``guarantees`` of a sum over a full cohort, the ``privacy`` statement, ``metrics``, and the kind of ``images``; as plain
        data.
        hand_on: sites hand relays on to each other, past the coordinator.
    """

    run: bytes
    config: Mapping[str, Any]
    sites: tuple[str, ...]
    sizes: Mapping[str, int]
    code: Mapping[str, Mapping[str, str]]
    terms: Mapping[str, Any]
    hand_on: bool = False

    def body(self, identity: Identity) -> Body:
        """Signed by the coordinator."""
        plain = {name: getattr(self, name) for name in ("config", "sizes", "code", "terms", "hand_on")} | {"sites": list(self.sites)}
        return {**plain, "signature": identity.sign(statement(_PURPOSE, self.run, plain))}


def invitation_to(job: Job, parts: Assembly, *, walks: bool = False) -> Invitation:
    """What all sites of a job are asked. ``walks``: the engine lets sites hand on relays, where there are any."""
    code = {name: one.to_dict() for name, one in code_of_run(job.config, parts.registry).items()}
    config = {section: value for section, value in job.config.items() if section not in ELSEWHERE}
    hand_on = walks and bool((session := _session(parts, job.sizes)) and session.relays)
    return Invitation(job.run, config, job.sites, dict(job.sizes), code, announced(parts, job.sizes), hand_on)


def _session(parts: Assembly, sizes: Mapping[str, int]) -> Session | None:
    """The sum of updates over a full cohort; None where there is none. What is promised does not depend on the value that is summed."""
    cohort = tuple(sizes)[: parts.privacy_setting(sizes).cohort]
    if not parts.personalization.shares or parts.aggregator.misfits(one := ValueSpec(1, "integer", 1), cohort):
        return None
    return parts.aggregator.plan(one, cohort)


def announced(parts: Assembly, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What a run promises, for a full cohort: computed by the coordinator to be announced, and by each site to be compared."""
    setting = parts.privacy_setting(sizes)
    session = _session(parts, sizes)
    guarantees = None if session is None else session.guarantees
    spec = parts.spec
    images = {"kind": spec.kind, "channels": spec.channels, "size": list(spec.size), "classes": list(spec.classes)}
    share = announced_share(parts, tuple(sizes))
    return {**promises(guarantees, parts.mechanism.plan(setting).statement), "metrics": share, "images": images}


def read_invitation(message: Message, roster: Mapping[str, bytes]) -> Invitation:
    """What a message of kind ``join`` holds. Raises WireError for another form, and for a signature that is not the pinned
    coordinator's.
    """
    body = message.body
    if set(body) != set(_FORM) or not all(type(body[name]) is form for name, form in _FORM.items()):
        raise WireError(f"an invitation must hold {', '.join(_FORM)}", place=JOIN)
    if SERVER not in roster:
        raise WireError("no identity is pinned for the coordinator", place="roster", hint="pppml site trust")
    plain = {name: body[name] for name in _FORM if name != "signature"}
    verify(roster[SERVER], body["signature"], statement(_PURPOSE, message.run, plain), "the coordinator")
    sites, sizes, code, terms = body["sites"], body["sizes"], body["code"], body["terms"]
    if not all(type(site) is str for site in sites) or len(set(sites)) != len(sites) or set(sizes) != set(sites):
        raise WireError("sites must be different names, sizes a map of them", place=JOIN)
    if not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise WireError("sizes must be whole numbers", place=JOIN)
    said = [one for one in code.values() if isinstance(one, Mapping) and set(one) == {"version", "sha256"}]
    if len(said) != len(code) or not all(isinstance(text, str) for one in said for text in one.values()):
        raise WireError("code must hold version and sha256 of each distribution", place=JOIN)
    if set(terms) != {"guarantees", "privacy", "metrics", "images"}:
        raise WireError("terms must hold guarantees, privacy, metrics and images", place=JOIN)
    check_promises(terms)
    return Invitation(message.run, body["config"], tuple(sites), sizes, code, terms, body["hand_on"])

"""What a site checks of an announced attempt besides its policy: that it is for this site, that what is promised is what this site's own
configuration will do, and that it names no strangers.

The form of the terms was checked before, in :mod:`.terms`. Each check raises PolicyRefusal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pppml_core.errors import PolicyRefusal
from pppml_core.federation import evaluation
from pppml_core.federation.assembly import Assembly, fewest_survivors
from pppml_core.federation.identity import roster_hash
from pppml_core.federation.pipeline import Pipeline
from pppml_core.federation.terms import promises
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.wire.messages import SERVER


def pipeline_of(terms: Mapping[str, Any], parts: Assembly, privacy: PrivacyPlan) -> Pipeline | None:
    """How a contribution is encoded under these terms; None where no update is shared."""
    if not parts.personalization.shares:
        return None
    return parts.pipeline(terms["round"], tuple(terms["ranges"]), terms["max_weight"], privacy)


def refuse_misplaced(terms: Mapping[str, Any], round: int, rounds: int, site: str, sites: Sequence[str]) -> None:
    """The round is one of the run's ``rounds``; the terms are for it, for this site, and for no others than the run's ``sites``."""
    if not 1 <= round <= rounds:
        raise PolicyRefusal(f"round {round} is none of the {rounds} rounds of this run")
    if site not in terms["cohort"] or not set(terms["cohort"]) <= set(sites) or terms["round"] != round:
        raise PolicyRefusal("the terms are not for this site and round")


def refuse_other_promises(terms: Mapping[str, Any], parts: Assembly, privacy: PrivacyPlan, sites: Sequence[str]) -> None:
    """What is announced must be what this site's own configuration will do, or the policy was shown something else."""
    pipeline = pipeline_of(terms, parts, privacy)
    guarantees = None if pipeline is None else parts.aggregator.plan(pipeline.spec, tuple(terms["cohort"])).guarantees
    if guarantees is not None and (fewest := fewest_survivors(guarantees, len(terms["cohort"]))) < privacy.min_survivors:
        text = f"a sum over {fewest} of the announced sites could be opened, and this site's noise is a share for {privacy.min_survivors}"
        raise PolicyRefusal(text)
    own = {**promises(guarantees, privacy.statement), "metrics": evaluation.announced_share(parts, sites)}
    for name, promised in own.items():
        if terms[name] != promised:
            raise PolicyRefusal(f"the announced {name} are not those of this site's configuration")


def refuse_strangers(terms: Mapping[str, Any], roster: Mapping[str, bytes]) -> None:
    """The identities the server counts on must be those pinned here (``roster``), or strangers could be put among the sites."""
    parties = (*terms["cohort"], SERVER)
    if unknown := [party for party in parties if party not in roster]:
        raise PolicyRefusal(f"no identity is pinned here for {', '.join(unknown)}", hint="pppml site trust")
    if roster_hash(roster, parties) != terms["roster"]:
        hint = "compare fingerprints: pppml site show"
        raise PolicyRefusal("the identities that the server announced are not those pinned at this site", hint=hint)

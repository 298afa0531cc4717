"""Whether a site takes part in a run: its policy against an invitation, first before and then after code of plugins is loaded."""

from __future__ import annotations

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.home import Home
from pppml_core.federation.invitation import Invitation, announced
from pppml_core.federation.policy import Policy
from pppml_core.federation.site import SiteHost
from pppml_core.wire.messages import SERVER


def before_code(home: Home, policy: Policy, asked: Invitation) -> None:
    """Raise PolicyRefusal naming the first rule that the announced terms break. No plugin has been loaded yet."""
    if home.name not in asked.sites:
        raise PolicyRefusal(f"this site, {home.name}, is none of the sites of this run: {', '.join(asked.sites)}")
    if strangers := [party for party in (*asked.sites, SERVER) if party not in home.pinned]:
        raise PolicyRefusal(f"no identity is pinned here for {', '.join(strangers)}", hint="pppml site trust")
    policy.check({"cohort": list(asked.sites), **asked.terms})


def after_code(home: Home, policy: Policy, asked: Invitation, host: SiteHost) -> None:
    """Raise PolicyRefusal where what this site would really do is not what was announced to its policy."""
    for name, own in announced(host.assembly, asked.sizes).items():
        if asked.terms[name] != own:
            raise PolicyRefusal(f"the announced {name} are not those of this site's configuration")
    held = len(host.assembly.load(home.name).train)
    if held != asked.sizes[home.name]:
        raise PolicyRefusal(f"the run counts on {asked.sizes[home.name]} training examples of this site, which has {held}")



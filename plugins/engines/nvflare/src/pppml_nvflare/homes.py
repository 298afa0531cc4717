"""Which home is whose. It is named by the environment of a party's own process, never by a job: no server learns of it or chooses it."""

from __future__ import annotations

import os
from pathlib import Path

from pppml_core.engines.parties import HOME, HOMES
from pppml_core.errors import ConfigError
from pppml_core.federation.home import open_home


def own_home(party: str) -> Path:
    """The home of this process's party, as its environment says. Raises ConfigError where it says nothing, or names another's."""
    found = os.environ.get(HOME) or (str(Path(os.environ[HOMES]) / party) if os.environ.get(HOMES) else "")
    if not found:
        raise ConfigError(f"{HOME} does not name a home", place=party, hint="start it with `pppml site run --home HOME`")
    home = open_home(Path(found))
    if home.name != party:
        raise ConfigError(f"this home is that of {home.name}", place=found, hint=f"NVFlare knows this process as {party}: use one name")
    return home.folder

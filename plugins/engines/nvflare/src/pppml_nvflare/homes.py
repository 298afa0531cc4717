"""Which home is whose. It is named by the environment of a party's own process, never by a job: no server learns of it or chooses it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pppml_core.errors import ConfigError
from pppml_core.federation.home import init_home, open_home
from pppml_core.federation.identity import CARD_FILE, pin

#: the home of the one party of a process; and, where one person runs all parties, the folder of all homes.
HOME, HOMES = "PPPML_HOME", "PPPML_HOMES"


def own_home(party: str) -> Path:
    """The home of this process's party, as its environment says. Raises ConfigError where it says nothing, or names another's."""
    found = os.environ.get(HOME) or (str(Path(os.environ[HOMES]) / party) if os.environ.get(HOMES) else "")
    if not found:
        raise ConfigError(f"{HOME} does not name a home", place=party, hint="start it with `pppml site run --home HOME`")
    home = open_home(Path(found))
    if home.name != party:
        raise ConfigError(f"this home is that of {home.name}", place=found, hint=f"NVFlare knows this process as {party}: use one name")
    return home.folder


def introduce(homes: Path, parties: Iterable[str]) -> None:
    """Homes ``homes/<party>``, made where missing, and everybody pinned by everybody: where one person runs all parties."""
    named = list(parties)
    made = [open_home(homes / name) if (homes / name / CARD_FILE).exists() else init_home(homes / name, name) for name in named]
    for home in made:
        for other in made:
            if home.pinned.get(other.name) != other.public:
                pin(home.folder, other.name, other.public)

"""What engines for real sites share: where a party's home is named, how parties of one person meet, and how no process is left over."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from pppml_core.federation.home import init_home, open_home
from pppml_core.federation.identity import CARD_FILE, pin

#: environment variables: the home of the one party of a process; and, where one person runs all parties, the folder of all homes.
HOME, HOMES = "PPPML_HOME", "PPPML_HOMES"


def acquaint(homes: Path, parties: Iterable[str]) -> None:
    """Homes ``homes/<party>``, made where missing, and everybody pinned by everybody, as `pppml site init` and `trust` do: for simulators
    and tests, where one person runs all parties.
    """
    named = list(parties)
    made = [open_home(homes / name) if (homes / name / CARD_FILE).exists() else init_home(homes / name, name) for name in named]
    for home in made:
        for other in made:
            if home.pinned.get(other.name) != other.public:
                pin(home.folder, other.name, other.public)


def end_with_parent() -> None:
    """End this process (SIGTERM, and by force five seconds later) when the one that started it has ended, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        os._exit(1)

    threading.Thread(target=watch, name="pppml-parent", daemon=True).start()

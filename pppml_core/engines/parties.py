"""What engines for real sites share: where a party's home is named, how parties of one person meet, that one process lives in a home, and
that none is left over.

Some of their processes live for one message: what is not needed at once is imported late.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pppml_core.errors import RunFailed

#: environment variables: the home of the one party of a process; and, where one person runs all parties, the folder of all homes.
HOME, HOMES = "PPPML_HOME", "PPPML_HOMES"
#: in a home: held by the process that lives there.
LOCK_FILE = "process.lock"


def acquaint(homes: Path, parties: Iterable[str]) -> None:
    """Homes ``homes/<party>``, made where missing, and everybody pinned by everybody, as `pppml site init` and `trust` do: for simulators
    and tests, where one person runs all parties.
    """
    from pppml_core.federation.home import init_home, open_home
    from pppml_core.federation.identity import CARD_FILE, pin

    named = list(parties)
    made = [open_home(homes / name) if (homes / name / CARD_FILE).exists() else init_home(homes / name, name) for name in named]
    for home in made:
        for other in made:
            if home.pinned.get(other.name) != other.public:
                pin(home.folder, other.name, other.public)


@contextmanager
def alone(home: Path, patience: float = 0.0) -> Iterator[None]:
    """Be the one lasting process of a home; the operating system lets go of it however this process ends.

    Raises RunFailed where another process is that for longer than ``patience`` seconds.
    """
    from pppml_core.federation.files import only_writer

    lock, deadline = home / LOCK_FILE, time.monotonic() + patience
    lock.touch(0o600)
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(only_writer(lock))
                break
            except RunFailed as error:
                if time.monotonic() > deadline:
                    hint = "a home belongs to one process: end the other one, or wait until what it is in is over"
                    raise RunFailed("another process of this site lives in its home", place=str(home), hint=hint) from error
        yield


def end_with_parent(parent: int | None = None) -> None:
    """End this process (SIGTERM, and by force five seconds later) when the one that started it has ended, however that ended.

    Args:
        parent: its process id, from itself: it may have ended already. Default: that of now.
    """
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        os._exit(1)

    threading.Thread(target=watch, name="pppml-parent", daemon=True).start()

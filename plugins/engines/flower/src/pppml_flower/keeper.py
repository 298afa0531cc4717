"""The keeper: one lasting process a site, which holds the resident; Flower's process of each message hands its frame on to it.

Flower starts a fresh process for every message. Were the site recreated in each, every stage would pay for importing torch and building
the parts. With a keeper the process of a message imports neither, and what a site holds within an attempt never touches the disk.
The door is a Unix socket in a folder that only this user may enter; the home says where it is.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from pppml_core.federation.files import write_atomic

#: in a home that is kept: the path of the socket.
ADDRESS = "keeper"


def ask(home: Path, frame: bytes) -> bytes | None:
    """The resident's reply to a frame; None where this home has no keeper. Raises OSError or EOFError where its keeper is gone."""
    try:
        address = (home / ADDRESS).read_text()
    except FileNotFoundError:
        return None
    with Client(address, family="AF_UNIX") as line:
        line.send_bytes(frame)
        return line.recv_bytes()


@contextmanager
def kept(home: Path) -> Iterator[None]:
    """Keep a home's resident in this process meanwhile."""
    from pppml_core.federation.resident import FROZEN, Resident

    for left in (home / "runs").glob(f"*/{FROZEN}"):
        left.unlink()  # what another process held of an attempt; nobody goes on with it
    resident = Resident(home)
    folder = Path(tempfile.mkdtemp(prefix="pppml-"))
    listener = Listener(str(folder / "door"), family="AF_UNIX", backlog=8)
    threading.Thread(target=_listen, args=(listener, resident), name="pppml-keeper", daemon=True).start()
    write_atomic(home / ADDRESS, str(folder / "door").encode())
    try:
        yield
    finally:
        (home / ADDRESS).unlink(missing_ok=True)
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


def _listen(listener: Listener, resident: object) -> None:
    while True:
        try:
            line = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(line, resident), name="pppml-frame", daemon=True).start()


def _answer(line: Connection, resident: object) -> None:
    from pppml_core.federation.resident import Resident

    assert isinstance(resident, Resident)
    # The process of the message may end before its time; it is not the resident's to mind.
    with line, suppress(OSError, EOFError):
        line.send_bytes(resident.receive(line.recv_bytes()))

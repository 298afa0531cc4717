"""The keeper: one lasting process a site, which holds the resident; Flower's process of each message hands it on and takes the answer.

Flower starts a fresh process for every message. Were the site made anew in each, two of them could answer for it at once, and every stage
would pay for importing torch and building the parts. So the process of a message imports nothing of this kind, and what a site holds within
an attempt never touches the disk. The door is a Unix socket in a folder that only this user may enter; the home says where it is. A home
without a keeper answers nobody.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING

from pppml_core.errors import PppmlError, RunFailed, WireError
from pppml_flower.post import CHALLENGE, FRAME, INTRODUCTION

if TYPE_CHECKING:
    from pppml_core.engines.words import Words
    from pppml_core.federation.resident import Resident

#: in a home that is kept: the path of the socket.
ADDRESS = "keeper"
#: the kind of an answer that there is none, noted already.
NONE = "none"
#: what Flower is told in place of an answer; why, is for the people of this site.
FAILED = "the site could not handle the message; its own log says why"
UNKEPT = "nobody lives at this node; its people start the site with: pppml site run"
LOG = logging.getLogger("pppml.flower")
#: seconds after a caller could not be let in.
_REST = 0.5


class Unkept(RunFailed):
    """This home has no keeper."""


def answer_of(home: Path, kind: str, data: bytes, node: int, resident: Resident, words: Words) -> tuple[str, bytes]:
    """What a home answers to one message, in its audit log already.

    Raises PppmlError, and OSError where the log cannot be written.
    """
    if kind == CHALLENGE:
        from pppml_flower.introduction import introduce

        told = introduce(home, data, node)
        words.note(home, INTRODUCTION, told, "who this node is, to the coordinator, who asked")
        return INTRODUCTION, told
    if kind != FRAME:
        raise WireError("this is nothing a site is asked", place="Flower message")
    return FRAME, resident.receive(data)


def ask(home: Path, kind: str, data: bytes, node: int) -> tuple[str, bytes]:
    """The keeper's answer to one message, or :data:`NONE`. Raises Unkept where there is no keeper, or one that was killed left its address;
    OSError or EOFError where it goes meanwhile.
    """
    try:
        line = Client((home / ADDRESS).read_text(), family="AF_UNIX")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise Unkept("no process of pppml lives in this home", place=str(home), hint="pppml site run") from error
    with line:
        for part in (kind.encode(), str(node).encode(), data):
            line.send_bytes(part)
        return line.recv_bytes().decode(), line.recv_bytes()


@contextmanager
def kept(home: Path) -> Iterator[None]:
    """Keep a home's resident in this process meanwhile. Raises RunFailed where another process keeps it."""
    from pppml_core.engines.parties import alone

    with alone(home), _kept(home):
        yield


@contextmanager
def _kept(home: Path) -> Iterator[None]:
    from pppml_core.engines.words import Words
    from pppml_core.federation.files import write_atomic
    from pppml_core.federation.resident import Resident

    resident = Resident(home)
    folder = Path(tempfile.mkdtemp(prefix="pppml-"))
    listener = Listener(str(folder / "door"), family="AF_UNIX", backlog=8)
    words, over = Words(), threading.Event()
    threading.Thread(target=_listen, args=(listener, home, resident, words, over), name="pppml-keeper", daemon=True).start()
    write_atomic(home / ADDRESS, str(folder / "door").encode())
    try:
        yield
    finally:
        (home / ADDRESS).unlink(missing_ok=True)
        over.set()
        listener.close()
        words.end()
        shutil.rmtree(folder, ignore_errors=True)


def _listen(listener: Listener, home: Path, resident: Resident, words: Words, over: threading.Event) -> None:
    while not over.is_set():
        try:
            line = listener.accept()
        except OSError:
            over.wait(_REST)  # no file is left to be opened, say: whoever is at the door waits
            continue
        try:
            threading.Thread(target=_answer, args=(line, home, resident, words), name="pppml-message", daemon=True).start()
        except RuntimeError:
            LOG.exception("a message could not be handled")  # no thread is left: the other end hears that nobody is there
            line.close()


def _answer(line: Connection, home: Path, resident: Resident, words: Words) -> None:
    with line:
        try:
            kind, node, data = line.recv_bytes().decode(), int(line.recv_bytes()), line.recv_bytes()
            kind, data = answer_of(home, kind, data, node, resident, words)
        except Exception:
            # The other end is told that there is no answer; the reason is for the people of this site.
            LOG.exception("a message could not be handled")
            note_lost(home, words)
            kind, data = NONE, b""
        with suppress(OSError):  # the process of the message may have been killed meanwhile
            line.send_bytes(kind.encode())
            line.send_bytes(data)


def note_lost(home: Path, words: Words) -> None:
    """Write down that the answer is none. Flower answers with an error of its own where there is no answer, so it leaves in any case."""
    from pppml_core.engines.words import LOSS

    try:
        words.note(home, LOSS, FAILED.encode(), FAILED)
    except (PppmlError, OSError):
        LOG.exception("the audit log cannot take that this site was lost")

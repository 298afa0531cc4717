"""The bridge between a coordinator's process and the server side of its NVFlare job: a Unix socket that only this user may open.

So a run is conducted where `pppml run` was called, with its folder, its reporters and its terminal, and NVFlare's job only carries its
frames. Where nobody conducts from outside (an exported job), there is no bridge.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from pppml_core.errors import PppmlError, RunFailed, WireError
from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.codec import decode, encode
from pppml_nvflare.forms import read_walk, write_walk

_ENDED = "the NVFlare job ended"
#: bytes that the name of a Unix socket may have everywhere.
LONGEST = 103
#: seconds after which a bridge that still lies there is of a killed process: a job comes, or is given up, within a day (`start`).
STALE = 2 * 86400.0


class Bridge:
    """The coordinator's end. It asks as :class:`pppml_nvflare.calls.Caller` does; every loss of the bridge is a loss of the site.

    Args:
        place: folder in which the other end finds it, with its absolute name; default: one for what is in passing, which a server that was
            started as a service may not see (``PrivateTmp``). Raises RunFailed where it cannot be written, and where its name is longer
            than that of a socket may be.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._line: Connection | None = None
        self._waiting: dict[int, Future[bytes]] = {}
        self._number = 0
        self._lock = threading.Lock()
        try:
            if place is not None:
                _clear(place)
            self._folder = Path(tempfile.mkdtemp(prefix="nv-", dir=place))
        except OSError as error:
            raise RunFailed(f"cannot be written: {error.strerror}", place=str(place)) from error
        self.path = self._folder / "b"
        self._listening = socket.socket(socket.AF_UNIX)
        try:
            if len(os.fsencode(self.path)) > LONGEST:
                hint = f"take a home whose name is {len(os.fsencode(self.path)) - LONGEST} bytes shorter"
                raise RunFailed("this name is too long for a socket, which the operating system bounds", place=str(self.path), hint=hint)
            self._listening.bind(str(self.path))
        except BaseException:
            self.close()
            raise
        self._listening.listen(1)

    def await_job(self, seconds: float, sign: Callable[[], str]) -> None:
        """Return when the job's server side has come. Raises RunFailed with what ``sign`` says is wrong, or where the time is up."""
        self._listening.settimeout(0.2)
        deadline = time.monotonic() + seconds
        while True:
            try:
                arrived, _ = self._listening.accept()
                break
            except TimeoutError:
                if (wrong := sign()) or time.monotonic() > deadline:
                    raise RunFailed(wrong or f"NVFlare's job did not begin within {seconds:g} seconds", place="nvflare") from None
        arrived.setblocking(True)
        shutil.rmtree(self._folder, ignore_errors=True)  # whoever it was for is here, and a run that is killed leaves nothing behind
        self._line = Connection(arrived.detach())
        threading.Thread(target=self._listen, args=(self._line,), name="pppml-bridge", daemon=True).start()

    @property
    def stands(self) -> bool:
        """Whether the job is there."""
        return self._line is not None

    def ask(self, site: str, frame: bytes) -> bytes | Loss:
        """A site's reply."""
        found = self._request({"site": site, "frame": frame, "walk": False})
        return found if isinstance(found, Loss) else found.reply

    def walk(self, path: Sequence[str], frame: bytes, bridge: bool) -> Walk:
        """A relay that the sites hand on, along a path that is in the first one's letter."""
        found = self._request({"site": path[0], "frame": frame, "walk": True})
        return Walk(path[0], found) if isinstance(found, Loss) else found

    def _request(self, asked: dict[str, Any]) -> Walk | Loss:
        answer = Future[bytes]()
        with self._lock:
            if self._line is None:
                return Loss(_ENDED, handed=False)
            self._number += 1
            self._waiting[self._number] = answer
            try:
                self._line.send_bytes(encode({**asked, "number": self._number}))
            except OSError:
                return Loss(_ENDED, handed=True)
        try:
            return read_walk(answer.result())
        except EOFError:
            return Loss(_ENDED, handed=True)
        except WireError as error:
            return Loss(f"its answer could not be read: {error.message}", handed=True)

    def _listen(self, line: Connection) -> None:
        with suppress(EOFError, OSError, WireError):
            while True:
                told = decode(line.recv_bytes())
                with self._lock:
                    answer = self._waiting.pop(told["number"], None)
                if answer is not None:
                    answer.set_result(told["walk"])
        with self._lock:
            self._line, waiting, self._waiting = None, list(self._waiting.values()), {}
        for answer in waiting:
            answer.set_exception(EOFError())
        line.close()

    def hang_up(self) -> None:
        """The job's server side ends, and with it the job."""
        with self._lock:
            if self._line is not None:
                with suppress(OSError), socket.socket(fileno=_dup(self._line)) as own:
                    own.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and leave nothing behind. Safe to call twice."""
        self.hang_up()
        self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def serve(path: str, ask: Callable[[dict[str, Any]], Walk], over: Callable[[], bool]) -> None:
    """The job's end: do what the coordinator asks until it hangs up or the job is ``over``.

    Raises RunFailed where no coordinator listens: it is on another machine, or another user's.
    """
    try:
        line = Client(path, family="AF_UNIX")
    except OSError as error:
        hint = "call `pppml run` on the machine of NVFlare's server, or submit what `pppml export nvflare` writes"
        raise RunFailed(f"no coordinator is here ({error.strerror})", place=path, hint=hint) from error
    lock = threading.Lock()

    def do(asked: dict[str, Any]) -> None:
        try:
            found = ask(asked)
        except PppmlError as error:
            found = Walk(asked["site"], Loss(error.message, handed=True))
        except Exception as error:  # else who asked would wait for ever
            found = Walk(asked["site"], Loss(f"NVFlare's server failed: {type(error).__name__}", handed=True))
        with lock, suppress(OSError):
            line.send_bytes(encode({"number": asked["number"], "walk": write_walk(found)}))

    pool = ThreadPoolExecutor(thread_name_prefix="pppml-ask", max_workers=1024)
    with suppress(EOFError, OSError):
        while not over():
            if line.poll(0.5):
                pool.submit(do, decode(line.recv_bytes()))
    line.close()
    pool.shutdown(wait=False, cancel_futures=True)


def _clear(place: Path) -> None:
    """Remove what was left of bridges whose process was killed before the job came."""
    for left in place.glob("nv-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.lstat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)


def _dup(line: Connection) -> int:
    return os.dup(line.fileno())

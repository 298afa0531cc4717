"""A TCP proxy on the loopback interface that records what passes, stalls, slows down and cuts: for drills of engines that use sockets.

It stands before a listening port; whoever is told ``proxy.port`` instead reaches that port through it. It does not look at what passes, so
it serves any engine::

    with Proxy(port) as proxy:
        ...                      # connect to proxy.port
        proxy.stall()            # bytes wait, connections stay: a network that has come to a halt
        proxy.go_on()
        proxy.cut()              # connections end and none comes through any more: a partition
        proxy.mend()
    up, down = proxy.recorded()  # all bytes of each direction, connection after connection
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

_CHUNK = 2**16


@dataclass
class _Passage:
    """One connection: both sockets, and what has passed."""

    near: socket.socket
    far: socket.socket
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)

    def end(self) -> None:
        for end in (self.near, self.far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Stands before ``port`` of this machine.

    Args:
        port: where somebody listens.
        record: keep all bytes that pass, in memory.
    """

    def __init__(self, port: int, *, record: bool = False) -> None:
        self._target, self._record = port, record
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self._open = True
        self._closed = False
        self._delay = 0.0
        self._passages: list[_Passage] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="pppml-proxy", daemon=True).start()

    # -- what it can be told to do -----------------------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Hold back every byte, on connections that stay open, until :meth:`go_on`."""
        self._flowing.clear()

    def go_on(self) -> None:
        """Let pass what was held back, and all that follows."""
        self._flowing.set()

    def slow(self, seconds: float) -> None:
        """Hold each piece of at most 64 KiB back for so long, one after another."""
        self._delay = seconds

    def cut(self) -> None:
        """End all connections, and every new one at once, until :meth:`mend`."""
        self._open = False
        self._end_all()

    def mend(self) -> None:
        """Let connections come about again."""
        self._open = True

    def recorded(self) -> tuple[bytes, bytes]:
        """Bytes of those who connected, and of who listened; connection after connection, a zero byte between."""
        with self._lock:
            passages = list(self._passages)
        return b"\0".join(bytes(p.up) for p in passages), b"\0".join(bytes(p.down) for p in passages)

    def close(self) -> None:
        """End everything. Safe to call twice."""
        self._closed, self._open = True, False
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._end_all()
        self._flowing.set()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- how it does it ----------------------------------------------------------------------------------------------------------------

    def _end_all(self) -> None:
        with self._lock:
            passages = list(self._passages)
        for passage in passages:
            passage.end()

    def _listen(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                if not self._open:
                    raise ConnectionError
                far = socket.create_connection(("127.0.0.1", self._target), timeout=30)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            passage = _Passage(near, far)
            with self._lock:
                self._passages.append(passage)
            for source, sink, kept in ((near, far, passage.up), (far, near, passage.down)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink, kept, passage), name="pppml-pump", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, kept: bytearray, passage: _Passage) -> None:
        try:
            while data := source.recv(_CHUNK):
                if self._delay:
                    time.sleep(self._delay)
                self._flowing.wait()
                if self._record:
                    kept += data
                sink.sendall(data)
            self._flowing.wait()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            passage.end()

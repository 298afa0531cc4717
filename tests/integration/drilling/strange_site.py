"""A site's process that is not as it should be: ``strange_site.py MODE [SITE ROUND STAGE]``. Without the named site it is as any other.

``clock FOLDER``: its wall clock is hours off, each process by another number of them; it leaves a note of that in the folder. ``full``:
from that request on it can write no file. ``length``: it answers that request with the head of a frame of 2**63 bytes; ``drip``: of 4 GiB,
of which a few come; ``flood``: with a million answers that nobody asked for, then the right one.
"""

from __future__ import annotations

import datetime
import os
import resource
import struct
import sys
import time
from pathlib import Path

HOURS = (-19, -7, 5, 13)
FLOOD = 1_000_000
_HEAD = struct.Struct("<QQQ")


def skew(folder):
    hours, real = HOURS[os.getpid() % len(HOURS)], time.time
    time.time = lambda: real() + 3600 * hours
    time.time_ns = lambda: int(1e9 * time.time())

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(time.time(), tz)

    datetime.datetime = Skewed
    (Path(folder) / str(os.getpid())).write_text(str(round((time.time() - real()) / 3600)))


def spoil(mode, site, round, stage):
    from pppml_core.engines import sockets
    from pppml_core.errors import WireError
    from pppml_core.wire.codec import decode_message

    send, receive = sockets.Line.send, sockets.Line.receive

    def is_it(frame, party):
        try:
            message = decode_message(frame)
        except WireError:
            return False
        return (getattr(message, party), message.round, message.stage) == (site, int(round), stage)

    def sending(line, number, about, data, deadline=None):
        if mode in ("length", "drip", "flood") and data and is_it(data, "sender"):
            if mode == "length":
                line._socket.sendall(_HEAD.pack(number, 0, 2**63) + b"x" * 1000)
                return
            if mode == "drip":
                line._socket.sendall(_HEAD.pack(number, 0, 2**32) + b"x" * 1000)
                return
            for _ in range(FLOOD // 1000):
                line._socket.sendall((_HEAD.pack(2**40, 1, 1) + b"..") * 1000)
        send(line, number, about, data, deadline)

    def receiving(line, deadline=None):
        number, about, data = receive(line, deadline)
        if mode == "full" and is_it(data, "recipient"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return number, about, data

    sockets.Line.send, sockets.Line.receive = sending, receiving


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "clock":
        skew(*rest)
    else:
        spoil(mode, *rest)
    from pppml_core.engines.site_process import main

    try:
        sys.exit(main())
    except (OSError, EOFError):
        sys.exit(0)

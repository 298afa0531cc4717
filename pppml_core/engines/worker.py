"""A worker process of the local engine: frames in on standard input, replies out on standard output.

The first frame is the job; then, for each message, a small frame that names the site and the message itself. Started as
``python -m pppml_core.engines.worker``; it ends when its input does, so it never outlives the run.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import traceback
from pathlib import Path
from typing import IO

MAX_FRAME = 2**34


def write_frame(pipe: IO[bytes], data: bytes) -> None:
    """Length, then bytes."""
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes:
    """The next frame. Raises EOFError at the end of the pipe, OSError on a length that cannot be right."""
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError("the pipe ended")
    (length,) = struct.unpack("<Q", head)
    if length > MAX_FRAME:
        raise OSError(f"a frame of {length} bytes")
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError("the pipe ended within a frame")
    return data


def main() -> int:
    """Serve the sites of one job until the input ends."""
    # Ctrl-C reaches every process of the terminal; the coordinator deals with it and closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source = sys.stdin.buffer
    # Replies go to the original standard output; whatever a library prints goes to standard error instead of into a frame.
    target = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    from pppml_core.wire.codec import decode, encode

    settings = decode(read_frame(source))
    sys.path[:] = [*settings["path"], *[p for p in sys.path if p not in settings["path"]]]

    from pppml_core.engines.local import InProcess
    from pppml_core.errors import PppmlError
    from pppml_core.interfaces.engine import Job, Loss

    job = Job(settings["run"], settings["config"], Path(settings["folder"]), tuple(settings["sites"]), settings["sizes"], {})
    transport: InProcess | None = None
    while True:
        try:
            site = decode(read_frame(source))["site"]
            frame = read_frame(source)
        except EOFError:
            return 0
        error, reply = {"error": "", "place": "", "hint": "", "traceback": ""}, b""
        try:
            transport = transport or InProcess(job, settings["amnesia"])
            ((_, answer),) = transport.deliver([(site, frame)])
            reply = answer if not isinstance(answer, Loss) else b""
        except PppmlError as failure:
            told = {"error": failure.message, "place": failure.place or "", "hint": failure.hint or ""}
            error = {**told, "traceback": traceback.format_exc()}
        except Exception as failure:
            # Whatever it is, it is told to the coordinator, which ends the run with the reason.
            error = {**error, "error": f"{type(failure).__name__}: {failure}", "traceback": traceback.format_exc()}
        clock = dict(transport.clock()) if transport is not None else {}
        write_frame(target, encode({"clock": clock, **error}))
        if not error["error"]:
            write_frame(target, reply)


if __name__ == "__main__":
    sys.exit(main())

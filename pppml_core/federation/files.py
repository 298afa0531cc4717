"""Files that are whole or absent: written beside, synced, renamed; folders that one process writes at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pppml_core.errors import RunFailed

#: a file system without locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def only_writer(file_of_it: Path) -> Iterator[None]:
    """Hold a folder for this process by a lock on one of its files; the operating system lets go of it however the process ends.

    Raises RunFailed where another process holds it. A file system without locks is used without.
    """
    with open(file_of_it, "rb") as file:
        for left in reversed(range(5)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if left:  # it may be no writer, but one who looks whether there is one
                    time.sleep(0.02)
                    continue
                hint = "wait for it, or end it, then resume"
                raise RunFailed("another process is writing this run", place=str(file_of_it.parent), hint=hint) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                break
        yield


def has_writer(file_of_it: Path) -> bool | None:
    """Whether a process holds the folder of this file, see :func:`only_writer`; None where the file system cannot say.

    A run on another machine is seen where the shared file system passes locks on, as NFS 4 does.
    """
    try:
        with open(file_of_it, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back with the file
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (*_NO_LOCKS, errno.EACCES):
            raise
        return None
    return False


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes began to write here and did not finish."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` so that after a crash at any moment ``path`` holds the old bytes or the new ones, never a part.

    ``sync=False`` leaves out the flush to the disk: still atomic for a killed process, not for a power cut.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

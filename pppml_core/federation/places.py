"""Whether a text of a configuration names a place on this machine: one answer for everybody who asks."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def names_a_place(text: str) -> bool:
    """A path from a root or a home on, or upwards from anywhere; a folder's content by its suffix; a URL. Of any system.

    A bare file name is none: it lies where this process was started, which is its owner's choice.
    """
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    if posix.is_absolute() or windows.anchor or text.startswith("~") or _SCHEME.match(text) or {"..", "."} & set(re.split(r"[/\\]", text)):
        return True
    return len(windows.parts) > 1 and bool(windows.suffix)

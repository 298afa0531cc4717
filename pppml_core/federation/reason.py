"""What a site says of why it did not do what it was asked: in words, and to others nothing of its data and its machine."""

from __future__ import annotations

import logging
import re

from pppml_core.errors import DataError, PppmlError
from pppml_core.wire.messages import Body

#: bytes of a reason; its end is cut.
LENGTH = 512
#: a path from a root or a home on: in quotes, or up to a space.
_PATH = re.compile(r"""(['"])(?:~|[A-Za-z]:)?[/\\].*?\1|(?<![\w.])(?:~|[A-Za-z]:)?[/\\][^\s'",;:)]+""")
#: what follows in a message is for this site's own people.
_HERE = "; here: "
_log = logging.getLogger("pppml.site")


def here_only(told: str, kept: str) -> str:
    """A reason whose second part only this site's own people are told: numbers that a rule protects."""
    return f"{told}{_HERE}{kept}"


def reason_of(error: Exception, *, simulated: bool = False) -> Body:
    """What a site answers where it refuses or fails.

    A real site tells neither what is wrong with its data, which would name files and patients, nor where anything lies on its machine, nor
    the numbers that a rule protects (:func:`here_only`). Its own people are told by the logger ``pppml.site``.

    Args:
        error: what went wrong.
        simulated: the site is one of a simulation, whose coordinator has everything: it is told everything.
    """
    whole = f"{type(error).__name__}: {error}"
    if isinstance(error, PppmlError):  # (not its str: this becomes part of another error's text, which has its own hint)
        whole = _sentence(error.place, error.message, error.hint)
    told = whole if simulated else _for_others(error)
    if told != whole:
        _log.error("%s", error, exc_info=None if isinstance(error, PppmlError) else error)
    return {"reason": told.encode()[:LENGTH].decode(errors="ignore")}


def _for_others(error: Exception) -> str:
    if isinstance(error, DataError):
        return "its data cannot be used as they are; its own log says why"
    if not isinstance(error, PppmlError):
        return f"an error of its own ({type(error).__name__}); its own log says more"
    place = None if error.place is None else re.split(r"[/\\]", error.place)[-1]
    message = error.message.partition(_HERE)[0]
    return _sentence(place, *(None if text is None else _PATH.sub("...", text) for text in (message, error.hint)))


def _sentence(place: str | None, message: str | None, hint: str | None) -> str:
    return (f"{place}: {message}" if place else str(message)) + (f" ({hint})" if hint else "")

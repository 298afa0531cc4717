"""Who looks: the text that names an adversary, read and checked."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core.errors import ConfigError, check_site, nearest
from pppml_core.interfaces.attack import Vantage

_KINDS = ("server", "site:SITE", "neighbours:SITE", "link:A-B", "public")
_HINT = f"one of {', '.join(_KINDS)}, or several joined by `+`"


def read_vantage(text: str, sites: Sequence[str]) -> Vantage:
    """The vantage that ``text`` names, e.g. ``server+site:b``.

    ``sites``: slugs of the run's. Raises ConfigError that names what would be right.
    """
    server = public = False
    members, around, links = set[str](), set[str](), set[tuple[str, str]]()
    for part in text.split("+"):
        kind, colon, name = part.strip().partition(":")
        if kind in ("server", "public") and not colon:
            server, public = server or kind == "server", public or kind == "public"
        elif kind in ("site", "neighbours") and colon:
            check_site(name, sites, ConfigError, place="vantage", where="in this run")
            (members if kind == "site" else around).add(name)
        elif kind == "link" and colon:
            one, dash, other = name.partition("-")
            if not dash:
                raise ConfigError(f"{part.strip()!r} names no two parties", place="vantage", hint="write link:A-B")
            for party in (one, other):
                check_site(party, ("server", *sites), ConfigError, place="vantage", where="in this run")
            links.add((one, other))
        else:
            raise ConfigError(f"there is no vantage {part.strip()!r}", place="vantage", hint=_hint(kind, sites))
    return Vantage(text, server, frozenset(members), frozenset(around), frozenset(links), public)


def file_part(vantage: str) -> str:
    """The vantage as it stands in file names: ``_`` for ``:``, ``+`` and ``-``."""
    return vantage.replace(" ", "").translate(str.maketrans(":+-", "___"))


def _hint(kind: str, sites: Sequence[str]) -> str:
    if kind in sites:
        return f"did you mean 'site:{kind}'?"
    close = nearest(kind, [known.partition(":")[0] for known in _KINDS])
    return f"did you mean {next(known for known in _KINDS if known.startswith(close))!r}?" if close else _HINT

"""Every error pppml raises on purpose, with the exit code the command line gives it.

An error names the place, the reason and the remedy; ``str(error)`` is one paragraph a person can act on. Exit codes: 1 a run failed,
2 the configuration, the data or the plan was refused, 3 a plugin is missing or broken, 4 the privacy budget is spent.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PppmlError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: the reason, one sentence.
        place: where it happened: ``file:line``, a config path such as ``task.sites``, a site, a stage.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, place: str | None = None, hint: str | None = None) -> None:
        self.message, self.place, self.hint = message, place, hint
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text} Hint: {self.hint}" if self.hint else text


class ConfigError(PppmlError):
    """The configuration cannot be read or is not valid."""

    exit_code = 2


class DataError(PppmlError):
    """A data file or folder is missing, damaged, or does not hold what the task needs."""

    exit_code = 2


class PlanRefused(PppmlError):
    """The parts do not fit together; ``misfits`` lists all reasons at once."""

    exit_code = 2

    def __init__(self, misfits: Sequence[str]) -> None:
        self.misfits = tuple(misfits)
        many = "s" if len(self.misfits) > 1 else ""
        super().__init__(f"the plan is refused for {len(self.misfits)} reason{many}: " + " | ".join(self.misfits), place="plan")


class PluginError(PppmlError):
    """A plugin is missing or broken."""

    exit_code = 3


class PluginConflict(PluginError):
    """Two distributions offer one name."""


class BudgetSpent(PppmlError):
    """The privacy budget would be exceeded by the next round."""

    exit_code = 4


class RunFailed(PppmlError):
    """A run stopped before its end; what was done so far can be resumed."""


class RoundAborted(RunFailed):
    """A secure sum ended without a result. Never a wrong sum instead."""


class RoundLost(RoundAborted):
    """A secure sum ended without a result after unmasking material had left a site: it is never tried again."""


class TooFewSurvivors(RoundAborted):
    """Fewer sites answered than the protocol needs."""


class InconsistentModel(RoundAborted):
    """Parties hold different models or terms for the same round."""


class PolicyRefusal(PppmlError):
    """A site's own policy forbids what was asked; ``message`` names the rule."""


class CheckpointError(PppmlError):
    """A run directory cannot be resumed from."""

    exit_code = 2


class WireError(PppmlError):
    """Bytes that are not a valid message, or a message that may not be sent."""


class UndeclaredField(WireError):
    """A site was about to send something that the wire manifest does not list."""


class SiteLost(PppmlError):
    """A site did not answer: it vanished, timed out, or its reply was not usable. A protocol decides what that means."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name`` in spelling, or None if none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def check_site(site: str, sites: Iterable[str], error: type[PppmlError], *, place: str, where: str = "") -> None:
    """Raise ``error`` if ``site`` is none of ``sites``; its hint is the nearest spelling, or all sites where none is near.

    Args:
        site: a slug that somebody gave.
        sites: slugs of the sites there are, in their order.
        error: the class to raise: what is wrong with the name, a setting or a call, depends on where it came from.
        place: as in :class:`PppmlError`.
        where: ends the sentence "there is no site 'x'", e.g. ``in this run``.
    """
    known = list(sites)
    if site in known:
        return
    close = nearest(site, known) if isinstance(site, str) else None  # whoever calls from Python may give anything
    hint = f"did you mean {close!r}?" if close else f"the sites are {', '.join(known)}"
    raise error(f"there is no site {site!r} {where}".rstrip(), place=place, hint=hint)

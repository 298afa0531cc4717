"""Attacks: readers of an adversary's view, and audits of a claim.

An attack is given what a named adversary holds (``view``), a budget and what is public of the run (``ctx``), and returns its best guess;
only the scorer knows the truth. It must model the defence whose public parameters it is handed. An audit (``reads_view = False``) plants
its own evidence, so it knows the truth and returns a verdict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pppml_core.component import ComponentConfig

if TYPE_CHECKING:
    from pppml_core.config import RunConfig
    from pppml_core.interfaces.privacy import PrivacyPlan, PrivacySetting

Outcome = Literal["recovered", "not_shown_to_leak", "inconclusive", "not_applicable"]


@dataclass(frozen=True)
class Vantage:
    """Who looks: a coalition of parties, from the text that names it, e.g. ``server+site:b``.

    Args:
        text: as it was given.
        server: whether the server is one of them.
        sites: slugs of the sites that are.
        neighbours: sites whose neighbours in a ring are.
        links: pairs of parties whose messages to each other are read.
        public: whether the published model is looked at.
    """

    text: str
    server: bool = False
    sites: frozenset[str] = frozenset()
    neighbours: frozenset[str] = frozenset()
    links: frozenset[tuple[str, str]] = frozenset()
    public: bool = False


@dataclass(frozen=True)
class AttackContext:
    """What is public of a finished run, and where its folder lies.

    Args:
        folder: the run's.
        config: resolved, with the task's defaults.
        parts: the built components (:class:`pppml_core.federation.assembly.Assembly`).
        setting: the public numbers for which the privacy mechanism was planned.
        privacy: that plan, made anew.
        result: ``result.json``.
        vantage: who looks.
        round: up to which round, counted from 1.
    """

    folder: Path
    config: RunConfig
    parts: Any = field(repr=False)
    setting: PrivacySetting
    privacy: PrivacyPlan
    result: Mapping[str, Any] = field(repr=False)
    vantage: Vantage
    round: int


@dataclass(frozen=True)
class Reconstruction:
    """An attack's answer: what it claims to have found, and the effort it took."""

    guess: Mapping[str, Any]
    effort: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """An audit's answer, as ``attacks/*.json`` records it; everything is plain data.

    Args:
        outcome: ``recovered``: what was claimed does not hold; ``not_shown_to_leak``: nothing was found by a test that could have;
            ``inconclusive``: nothing was found, and the test could not have; ``not_applicable``.
        reason: in a sentence or two.
        metrics: what was measured.
        control: the same test where it must find something.
        best_guess: the same test without the evidence.
        effort: what it took.
    """

    outcome: Outcome
    reason: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)
    best_guess: Mapping[str, Any] = field(default_factory=dict)
    effort: Mapping[str, float] = field(default_factory=dict)


class Attack(ABC):
    """Reads a view, or audits a claim."""

    #: False: it needs no view, gets an empty one, and returns a :class:`Verdict`.
    reads_view: ClassVar[bool] = True

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def run(self, view: Any, budget: float, ctx: Any) -> Reconstruction | Verdict:
        """The best guess, or the verdict, within about ``budget`` seconds; ``ctx``: an :class:`AttackContext`."""

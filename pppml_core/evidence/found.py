"""What is tried, what is spent on it, and what came of it, victim by victim: plain data, of which a record is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy.typing as npt

from pppml_core.component import ComponentConfig
from pppml_core.evidence.measures import Metrics
from pppml_core.interfaces.attack import Attack, Images, Seen, Sight, Vantage

OWN = "the watched site is one of the adversaries"
#: why an attack told nothing, or not enough. ``own``: the watched site is one of the adversaries; ``no_such_party``: nobody is at this
#: vantage in this run; ``hidden``: this party decodes no sum that the site is in; ``misfit``: the attack does not fit for another reason;
#: ``broke``: it failed for some victim.
Why = Literal["own", "no_such_party", "hidden", "misfit", "broke"]


@dataclass(frozen=True)
class Cell:
    """One attack from one vantage."""

    attack: ComponentConfig
    vantage: Vantage


@dataclass(frozen=True)
class Effort:
    """How much is spent.

    Args:
        cheap: victims of an attack that takes milliseconds.
        optimized: victims of one that takes its whole budget.
        seconds: budget of one answer.
        gallery: images among which a victim is to be picked.
        seed: of victims, galleries, and the attacks' own choices.
    """

    cheap: int = 100
    optimized: int = 3
    seconds: float = 10.0
    gallery: int = 100
    seed: int = 0

    def of(self, attack: ComponentConfig) -> Effort:
        """With what an attack's own config says of ``victims`` and ``seconds``."""
        victims, seconds = (getattr(attack, name, None) for name in ("victims", "seconds"))
        return replace(self, cheap=victims or self.cheap, optimized=victims or self.optimized, seconds=seconds or self.seconds)

    def victims(self, attack: Attack) -> int:
        """Of that attack."""
        return self.cheap if attack.cheap else self.optimized


@dataclass(frozen=True)
class Control:
    """Scores of one victim with the defence off, and on random updates; ``broken``: why the attack failed in a control run.

    A broken run with the defence off found nothing; one on random updates says nothing, and is not among the scores.
    """

    positive: Metrics
    negative: Sequence[Metrics] = ()
    broken: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A victim and what was made of it, in the task's units; ``low`` and ``high``: the range of pixel values.

    ``original``: all images of the watched step, of which the first is shown: with which guess it is paired depends on the others.
    """

    original: Images
    guess: npt.NDArray[Any]
    public: Images
    low: npt.NDArray[Any]
    high: npt.NDArray[Any]


@dataclass
class Found:
    """What came of one cell, victim by victim; what is scored, not what was guessed.

    ``pictures``: see :mod:`.strips`. ``misfit``: why the attack does not fit this vantage, in words, and ``why`` in one; ``unfit``: so many
    of its victims; a cell with scores is judged on the others. ``given_up``: after a victim for whom its process died or never answered.
    ``lied``: the server sent other weights than the true ones; ``caught``: what a site's policy (``vet_weights``) says of them.
    """

    cell: Cell
    attack: Attack
    scores: list[Metrics] = field(default_factory=list)
    control: list[Metrics] = field(default_factory=list)
    negative: list[Metrics] = field(default_factory=list)
    efforts: list[Mapping[str, float]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    misfit: str = ""
    why: Why | None = None
    errors: list[str] = field(default_factory=list)
    caught: list[str] = field(default_factory=list)
    given_up: bool = False
    lied: bool = False
    broken: list[str] = field(default_factory=list)
    unfit: int = 0
    pictures: list[Picture] = field(default_factory=list)
    alike: list[int] = field(default_factory=list)


def trimmed(seen: Seen) -> Seen:
    """Which sums were decoded, without their values."""
    return replace(seen, messages=(), weights={}, after={}, secrets={}, sights=tuple(Sight(s.sites, {}, s.weight) for s in seen.sights))

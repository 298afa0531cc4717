"""Attacks: readers of an adversary's view, and audits of a claim.

An attack is given what a named adversary *saw* (an :class:`AdversaryView`: decoded sums, messages, the secrets of its own members) and
what it *knows* (a :class:`Knowledge`: network, task, public images, and the defence as a forward model), and returns its best guess. It
runs without the truth; only the scorer has that. A whole attack, in two files::

    # my_attack/plugin.py
    @hookimpl
    def pppml_attacks():
        return [Component("my-attack", MyAttackConfig, "my_attack.attack:MyAttack", "names the diagnosis")]

    # my_attack/attack.py
    class MyAttack(Attack):
        answers = "labels"

        def run(self, view, budget, ctx):
            seen = view.of(ctx.site)                     # the smallest sum the adversary decoded that holds this site
            bias = ctx.gradient(seen)["head.bias"]
            return Reconstruction({"labels": bias.argmin(keepdims=True)}, {"evaluations": 0})

It must model the defence: compare with ``ctx.expected(...)``, which clips, averages and scales as the defence does, and weigh what is left
by ``ctx.defence.noise``. An audit (``reads_view = False``) plants its own evidence, so it knows the truth and returns a verdict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig
from pppml_core.wire.messages import Message

if TYPE_CHECKING:
    import torch

    from pppml_core.config import RunConfig
    from pppml_core.interfaces.privacy import PrivacyPlan, PrivacySetting
    from pppml_core.interfaces.task import TaskSpec

Outcome = Literal["recovered", "not_shown_to_leak", "inconclusive", "not_applicable"]
#: what an attack claims to find; each is scored in its own way, see :class:`Reconstruction`.
Answer = Literal["images", "labels", "area", "candidate", "members", "site", "update"]
Arrays = Mapping[str, npt.NDArray[Any]]


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
class Sight:
    """A sum that the adversary decodes: the weighted mean update over exactly these sites, in one round.

    Args:
        sites: whose it is the sum of, members of the coalition left out (they subtract their own).
        update: shared tensor name -> mean update over ``sites``, float32, in the model's units (new weights less old ones).
        weight: the summed weight, in examples (or in sites, where every site weighs 1).
        released: whether two published models are in it, and so the noise that a server adds to the sum (``placement: server``).
    """

    sites: tuple[str, ...]
    update: Arrays
    weight: float
    released: bool = False


@dataclass(frozen=True)
class Seen:
    """What the adversary saw of one round.

    Args:
        round: counted from 1.
        weights: the shared weights that the round began with; empty where the vantage does not get the model.
        after: those it ended with.
        cohort: the sites of the round.
        sights: every sum it decodes.
        messages: everything that went through its hands, decoded; ciphertexts and masked values are arrays and bytes as they are.
        secrets: member -> what it held itself (keys, seeds, shares), everything it could remember.
        members: the parties of the coalition; who are neighbours in a ring is decided round by round.
    """

    round: int
    weights: Arrays
    after: Arrays
    cohort: tuple[str, ...]
    sights: tuple[Sight, ...]
    messages: tuple[Message, ...] = field(default=(), repr=False)
    secrets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    members: tuple[str, ...] = ()

    def of(self, site: str) -> Sight | None:
        """The smallest decoded sum that this site is in; None: there is none."""
        return min((s for s in self.sights if site in s.sites), key=lambda s: (len(s.sites), s.released), default=None)


@dataclass(frozen=True)
class AdversaryView:
    """What an adversary saw, round by round up to the attacked one, which is the last. Nothing here depends on the truth but by that.

    A staged round stands alone; of a recorded run there are as many rounds as the attack uses, see ``Attack.rounds``.
    """

    vantage: Vantage
    rounds: tuple[Seen, ...]

    @property
    def last(self) -> Seen:
        """The attacked round."""
        return self.rounds[-1]

    def of(self, site: str) -> Sight | None:
        """The smallest decoded sum of the attacked round that this site is in; None: there is none."""
        return self.last.of(site)


@dataclass(frozen=True)
class Images:
    """``images``: float32 ``(n, channels, *size)``, in the task's units; ``targets``: int64 ``(n,)`` or ``(n, *size)``."""

    images: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Defence:
    """The public parameters of what stands between a gradient and what is seen of it, in units of a site's update.

    Args:
        mechanism: of privacy; ``none``.
        clip: bound of a norm (L2); None: nothing is clipped.
        clips: what it bounds: each ``example``'s gradient, the whole ``update``, or ``nothing``.
        noise: standard deviation of the noise on one coordinate of the watched site's own update, if that site stood alone with all the
            noise that is in the sum; 0: none.
        grid: step of the fixed-point grid by tensor name, the largest rounding error of one coordinate of the update.
        divisor: what the sum of clipped gradients is divided by; None: the number of examples.
        multiplier: noise over sensitivity of one release, as the accountant charges it; None: no claim.
    """

    mechanism: str = "none"
    clip: float | None = None
    clips: Literal["example", "update", "nothing"] = "nothing"
    noise: float = 0.0
    grid: Mapping[str, float] = field(default_factory=dict)
    divisor: float | None = None
    multiplier: float | None = None


@dataclass(frozen=True)
class Training:
    """How the watched site made its update: ``steps`` steps of SGD at ``learning_rate``, each on ``batch`` of its examples, in order.

    ``exact``: False where the site's real rule is another (Adam, momentum, several epochs in an order of its own), which this stands for.
    """

    learning_rate: float
    steps: int = 1
    batch: int = 1
    exact: bool = True


@dataclass(frozen=True)
class Knowledge:
    """What the adversary knows: all that is public, and the site it is after.

    Args:
        site: slug of the watched site.
        spec: of the task.
        network: makes the run's network (on the CPU, initial values arbitrary); load ``Seen.weights`` yourself, see ``model``.
        loss: mean loss of a batch, ``(outputs, targets) -> 0-d tensor``.
        training: how an update is made.
        defence: its public parameters.
        low, high: range of pixel values in the task's units, by channel shape ``(channels, 1, ...)``; reconstructions lie in it.
        public: images of the same kind from elsewhere, none of them a victim.
        candidates: a gallery: the victim and look-alikes of the same label and site, in an order that says nothing. None: not given.
        queries: images of which some may have been trained on, in an order that says nothing. None: not given.
        sites: slugs of all sites.
        sites_public: site -> images that everybody knows to be from there; for site inference. Empty: not given.
        config: the run's resolved config, plain data.
        seed: for the attack's own random choices.
        adaptive: False: the attack is told of no defence, to measure what knowing it is worth.
    """

    site: str
    spec: TaskSpec
    network: Callable[[], torch.nn.Module] = field(repr=False)
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(repr=False)
    training: Training
    defence: Defence
    low: npt.NDArray[np.float32] = field(repr=False)
    high: npt.NDArray[np.float32] = field(repr=False)
    public: Images = field(repr=False)
    candidates: Images | None = field(default=None, repr=False)
    queries: Images | None = field(default=None, repr=False)
    sites: tuple[str, ...] = ()
    sites_public: Mapping[str, Images] = field(default_factory=dict, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    seed: int = 0
    adaptive: bool = True

    @property
    def told(self) -> Defence:
        """The defence as far as the attack is told of it: none unless ``adaptive``."""
        return self.defence if self.adaptive else Defence()

    def model(self, seen: Seen, dtype: Any = None) -> torch.nn.Module:
        """The network with the weights that the round began with, in training mode as the site had it; ``dtype``: default float32."""
        from pppml_core.learning.forward import placed

        return placed(self.network(), seen.weights, dtype)

    def expected(self, model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """The update the watched site would make of these images at ``model``'s weights, without noise and rounding; differentiable.

        ``targets``: int64 classes or masks, or float class probabilities of the same batch size (soft labels). Parameter name -> tensor.
        The defence's clip is in it unless ``adaptive`` is False.
        """
        from pppml_core.learning.forward import expected_update

        return expected_update(model, self.loss, images, targets, self.training, self.told)

    def gradient(self, sight: Sight) -> dict[str, npt.NDArray[np.float32]]:
        """The mean gradient that one step of plain descent would have made of this sight: minus the update over rate times steps."""
        scale = -1.0 / (self.training.learning_rate * max(1, self.training.steps))
        return {n: (np.asarray(u) * np.float32(scale)).astype(np.float32) for n, u in sight.update.items()}


@dataclass(frozen=True)
class Budget:
    """``seconds`` of wall-clock time for one answer, about; an attack returns its best so far when they are over."""

    seconds: float


@dataclass(frozen=True)
class Reconstruction:
    """An attack's answer: what it claims to have found, and the effort it took; everything is plain data.

    Args:
        guess: by kind of answer.
            ``images``: float ``(k, channels, *size)``, in the task's units; ``labels``: int ``(k,)`` of the watched batch in any order;
            ``counts``: float ``(classes,)``, how many of each label; ``area``: float, the mean share of foreground pixels;
            ``candidate``: float ``(M,)``, a score of each of ``ctx.candidates``, the largest is the guess;
            ``members``: float ``(n,)``, a score of each of ``ctx.queries`` having been trained on;
            ``site``: float ``(n, len(ctx.sites))``, a score of each query being from each site;
            ``update``: float ``(shared coordinates,)``, the watched site's own update.
        effort: ``evaluations`` (of gradients), ``seconds``, ``loss`` (the attack's own), ``restarts``.
    """

    guess: Mapping[str, Any]
    effort: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackContext:
    """What is public of a finished run, and where its folder lies. For audits.

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
    #: what decides its outcome; it may answer more.
    answers: ClassVar[Answer] = "images"
    #: how many images the watched site's step is made of when a round is staged for this attack.
    batch: ClassVar[int] = 1
    #: whether one answer takes milliseconds, so that a hundred victims are affordable; optimized attacks get few.
    cheap: ClassVar[bool] = False
    #: which rounds of a recorded run it is shown: the attacked one alone (``last``), or with it every earlier one (``all``). Where a
    #: setting decides, set it in ``__init__``. A staged round stands alone.
    rounds: Literal["last", "all"] = "last"

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """Why this attack does not apply to this view and task, a sentence; empty: it does. Default: a decoded sum is needed."""
        return "" if view.of(ctx.site) else "this adversary decodes no sum that the watched site is in"

    def plant(self, weights: Arrays, ctx: Knowledge) -> Arrays:
        """Weights that a lying server sends instead of ``weights``, same names and shapes. Default: the true ones."""
        return weights

    @abstractmethod
    def run(self, view: AdversaryView, budget: Any, ctx: Any) -> Reconstruction | Verdict:
        """The best guess within about ``budget.seconds``; of an audit, the verdict (``ctx``: an :class:`AttackContext`).

        It follows from the arguments alone. One process answers for several victims and vantages: what it keeps of one (a cache) must not
        change what it says of another.
        """

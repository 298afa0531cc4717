"""Privacy mechanisms: sampling, gradient rule, clip, noise and its charge.

A mechanism is planned once for a run, from public numbers alone, and then consulted at fixed places of the round. A site draws its
batches with ``sample``, makes gradients with ``gradient_rule``, clips the flat update with ``constrain``, rounds it to the grid of
``encoding`` and adds ``noise`` to the integers (placements ``local`` and ``distributed``); the ``charge`` is on disk before anything of
it leaves. The server adds ``noise`` to the integer sum with placement ``server``. Flat means the shared tensors alone, one after another,
without the weight. ``none`` does nothing and claims nothing. Clipping alone, without a claim, is::

    class ClipOnlyPlan(PrivacyPlan):
        constant_weight, admits_metrics = 1, False

        @property
        def statement(self):
            return PrivacyStatement("clip-only", epsilon=math.inf)

        def constrain(self, flat):
            return flat * min(1.0, self.clip / np.linalg.norm(flat))

Noise and what an accountant relies on come from the operating system (:func:`pppml_core.randomness.entropy`), never from the run's seed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig

if TYPE_CHECKING:
    import torch

    from pppml_core.interfaces.attack import Defence
    from pppml_core.interfaces.personalization import GradientRule, Personalization
    from pppml_core.learning.gradients import PlainGradients

Placement = Literal["none", "local", "distributed", "server"]


@dataclass(frozen=True)
class PrivacyStatement:
    """What is claimed for the whole run, with everything a claim of epsilon must name. ``epsilon`` None: no claim; infinite: none holds.

    Args:
        mechanism: its name.
        epsilon: for the whole run.
        delta: probability with which the bound may fail.
        unit: whose data is protected: ``example``, ``patient`` or ``site``.
        adjacency: which data sets count as neighbours: ``add-remove``, or ``zero-out`` where the roster of sites is public.
        placement: who adds the noise.
        accountant: how epsilon was computed: ``pld`` or ``rdp``.
        adversary: against whom the claim holds, in words.
        details: further public numbers (noise multiplier, sampling rate, steps, share variance ...), plain data. ``claimed_epsilon``: what
            the authors of a setting claim for it, which is told wherever the true one is.
    """

    mechanism: str
    epsilon: float | None = None
    delta: float | None = None
    unit: str = ""
    adjacency: str = ""
    placement: Placement = "none"
    accountant: str = ""
    adversary: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``result.json`` and the wire, see :func:`plain_epsilon`."""
        return {**asdict(self), "epsilon": plain_epsilon(self.epsilon)}

    def words(self) -> str:
        """The claim in one line, with everything it depends on."""
        return claim_words(self.to_dict())


def plain_epsilon(epsilon: float | None) -> float | str | None:
    """Epsilon as JSON carries it: an infinite one is the text ``inf``, for which JSON has no number."""
    return "inf" if epsilon is not None and math.isinf(epsilon) else epsilon


def claim_words(privacy: Mapping[str, Any]) -> str:
    """The claim of a statement's plain form in one line, with everything it depends on."""
    epsilon = privacy.get("epsilon")
    if epsilon is None:
        return "no differential privacy"
    if epsilon == "inf":
        return f"no differential privacy ({privacy['mechanism']}: epsilon is infinite)"
    claimed = (privacy.get("details") or {}).get("claimed_epsilon")
    beside = "" if claimed is None else f"; the authors of this setting claim {claimed:g}"
    return f"epsilon {epsilon:.4g} for the whole run ({condition_words(privacy)}{beside})"


#: what an epsilon means nothing without, by its name in a statement.
CONDITIONS = ("unit", "adjacency", "delta", "accountant", "placement", "adversary")


def condition_words(privacy: Mapping[str, Any]) -> str:
    """The :data:`CONDITIONS` of a statement's plain form, each with its name."""
    said = {name: f"{privacy[name]:g}" if isinstance(privacy[name], float | int) else privacy[name] for name in CONDITIONS}
    return f"{', '.join(f'{name} {said[name]}' for name in CONDITIONS[:-1])}, adversary: {said['adversary']}"


@dataclass(frozen=True)
class PrivacySetting:
    """What a mechanism is planned for: public numbers only, the same at every party.

    Args:
        rounds: of the run.
        cohort: sites of a round.
        examples: training examples of each site.
        batch_size: ``training.batch_size``; with Poisson sampling the expected batch of a site of mean size.
        local_steps: optimizer steps of each site in a round.
        gradient_calls: gradients made in one step.
        sample_rate: what the mechanism's ``sample_rate`` said; None: batches are passes over shuffled data.
        learning_rates: the local learning rate of each round, schedule included.
        coordinates: shared numbers of the model, or trained ones where these are more.
        min_survivors: fewest sites in any sum: no sum over fewer is opened.
        sees_sum: who learns the sum first.
        sees_update: who learns one site's update.
        coalition: largest number of sites that may pool what they know, with the server where it coordinates, and learn only sums.
    """

    rounds: int
    cohort: int
    examples: Mapping[str, int]
    batch_size: int
    local_steps: Mapping[str, int]
    gradient_calls: int
    sample_rate: float | None = None
    learning_rates: tuple[float, ...] = ()
    coordinates: int = 0
    min_survivors: int = 1
    sees_sum: tuple[str, ...] = ()
    sees_update: tuple[str, ...] = ()
    coalition: int = 0


@dataclass(frozen=True)
class Encoding:
    """The grid of a mechanism's integers: one ``range`` for all coordinates, so that one sensitivity holds for all, and ``bits``."""

    range: float
    bits: int


@dataclass(frozen=True)
class Sample:
    """A drawn batch: ``indices`` of examples, int64 ``(n,)``, possibly none.

    ``shares``, float64 ``(n,)`` in (0, 1]: the part of the clip each example may use, so that all of one patient together use at most one.
    """

    indices: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Canaries:
    """Artificial examples for an audit: their gradients are zero but for one coordinate, before clipping.

    Args:
        coordinates: of the flat update, one for each canary, int64 ``(m,)``, all different.
        values: the gradient there, float64 ``(m,)``; far above the clip, so that clipping is tested too.
    """

    coordinates: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


class PrivacyPlan(ABC):
    """A mechanism bound to a run."""

    placement: Placement = "none"
    #: public constant used as every site's weight; None: the site's own number of examples.
    constant_weight: int | None = None
    #: whether training metrics and saturation counts may enter the sum.
    admits_metrics = True
    #: largest absolute value that ``noise`` adds to a coordinate (its tails are cut there); widens what a contribution may hold.
    noise_bound = 0
    #: probability with which each example is in a batch that ``sample`` draws; None: batches are the run's own passes over shuffled data.
    sample_rate: float | None = None
    #: fewest sites over which a sum may be opened: a site takes no part, and the server holds none, where fewer are possible.
    min_survivors = 1

    @property
    @abstractmethod
    def statement(self) -> PrivacyStatement:
        """The claim for the whole run."""

    def remarks(self, model: torch.nn.Module) -> list[str]:
        """What the plan should say of this mechanism and network, e.g. how per-example gradients are made."""
        return []

    def cross_checks(self) -> Mapping[str, float | None]:
        """Epsilon of the planned rounds by every accountant there is, name -> value; None: it does not apply or is not installed."""
        return {}

    def sample(self, groups: npt.NDArray[Any]) -> Sample:
        """Draw a batch; asked before every gradient where there is a ``sample_rate``.

        ``groups``: group (patient, smear, volume) of each of the site's training examples, shape ``(n,)``.
        """
        raise NotImplementedError

    def gradient_rule(self, plain: PlainGradients) -> GradientRule:
        """The rule for one round of local training in place of plain autograd; asked once a round.

        Batches come from ``sample`` where there is a ``sample_rate``: they may be empty, and carry their ``shares`` (:class:`.DrawnBatch`).
        """
        return plain

    def audited(self, canaries: Canaries) -> PrivacyPlan | None:
        """This plan with artificial examples, each sampled, clipped and summed like any other. None: there are no examples to add."""
        return None

    def constrain(self, flat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The clipped flat update, shape ``(shared coordinates,)``."""
        return flat

    def encoding(self, round: int) -> Encoding | None:
        """The grid of this round's integers. None: as the config says."""
        return None

    def noise(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """Integers with noise, same dtype: a site's weighted update with its share, or the server's decoded sum."""
        return values

    def defence(self, round: int, sites: int) -> Defence:
        """What an attacker who knows this plan makes of one optimizer step of round ``round``, seen in a sum over ``sites`` sites."""
        from pppml_core.interfaces.attack import Defence

        return Defence()

    def charge(self, round: int) -> Mapping[str, Any] | None:
        """The ledger entry of one contribution; it is on disk before the contribution leaves. None: nothing to charge.

        The server notes the public charge of each round too.
        """
        return None

    def spent(self, charges: Sequence[Mapping[str, Any]]) -> float | None:
        """Epsilon of all these charges together, in any order and also of other runs over the same data. None: no claim.

        Entries that cannot be read (a torn line) must count as much as the largest charge. A run stops before its ledger would exceed
        the claim, and so does each site by its own ledger.
        """
        return None

    def affords(self, charges: Sequence[Mapping[str, Any]]) -> bool:
        """Whether all these charges together stay within the claim. Override it where ``spent`` is slow."""
        limit, spent = self.statement.epsilon, self.spent(charges)
        return limit is None or spent is None or spent <= limit * (1 + 1e-9)


class PrivacyMechanism(ABC):
    """Binds its config to a run, or says why a claim would be false."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def sample_rate(self, examples: Mapping[str, int], batch_size: int) -> float | None:
        """Probability with which each example is in a batch; an epoch is then ``round(1 / rate)`` steps. None: no Poisson sampling."""
        return None

    def misfits(
        self, setting: PrivacySetting, personalization: Personalization, model: torch.nn.Module, training: Mapping[str, Any]
    ) -> list[str]:
        """All reasons why the claim would not hold in this combination, each a sentence with its remedy.

        ``training``: the config's section as plain data.
        """
        return []

    @abstractmethod
    def plan(self, setting: PrivacySetting) -> PrivacyPlan:
        """The mechanism for this run."""

    def spent(self, charges: Sequence[Mapping[str, Any]]) -> float | None:
        """Epsilon, at this config's delta, of all these charges together: of several runs over the same data, one of which is chosen by
        what it showed. Entries that cannot be read count as in :meth:`PrivacyPlan.spent`. None: it cannot be told.
        """
        return None

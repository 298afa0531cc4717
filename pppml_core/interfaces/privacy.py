"""Privacy mechanisms: gradient rule, clip, noise and its charge.

A mechanism is planned once for a run and then consulted at fixed places of the round: ``gradient_rule`` inside training; at the site
``constrain`` and ``noise`` on the flat update, ``integer_noise`` on its integers, ``charge`` before anything of it leaves; ``server_noise``
on the decoded sum. Flat means the shared tensors alone, one after another, without the weight and the training metrics. ``none`` does
nothing and claims nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig

if TYPE_CHECKING:
    from pppml_core.interfaces.personalization import GradientRule

Placement = Literal["none", "local", "distributed", "server"]


@dataclass(frozen=True)
class PrivacyStatement:
    """What is claimed, with everything a claim of epsilon must name. ``epsilon`` None: no claim."""

    mechanism: str
    epsilon: float | None = None
    delta: float | None = None
    unit: str = ""
    adjacency: str = ""
    placement: Placement = "none"
    accountant: str = ""
    adversary: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``result.json``."""
        return asdict(self)


@dataclass(frozen=True)
class PrivacySetting:
    """What a mechanism is planned for: public numbers only."""

    rounds: int
    cohort: int
    examples: Mapping[str, int]
    batch_size: int
    local_steps: Mapping[str, int]
    gradient_calls: int


class PrivacyPlan(ABC):
    """A mechanism bound to a run."""

    placement: Placement = "none"
    #: public constant used as every site's weight; None: the site's own number of examples.
    constant_weight: int | None = None
    #: whether training metrics and saturation counts may enter the sum.
    admits_metrics = True
    #: largest absolute value that ``integer_noise`` adds to a coordinate (its tails are cut there); widens what a contribution may hold.
    noise_bound = 0

    @property
    @abstractmethod
    def statement(self) -> PrivacyStatement:
        """The claim for the whole run."""

    def gradient_rule(self, plain: GradientRule) -> GradientRule:
        """The rule local training uses in place of plain autograd."""
        return plain

    def constrain(self, flat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The clipped flat update, shape ``(shared coordinates,)``."""
        return flat

    def noise(self, flat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The clipped flat update with real-valued noise; asked with placement ``local`` only."""
        return flat

    def integer_noise(self, values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The weighted update's integers with this site's share of noise; asked with placement ``distributed`` only."""
        return values

    def server_noise(self, total: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The decoded weighted sum of updates, flat, float64, not yet divided by the summed weight ratios, with noise; asked with
        placement ``server`` only.
        """
        return total

    def charge(self, round: int) -> Mapping[str, Any] | None:
        """The ledger entry of one contribution; it is on disk before the contribution leaves. None: nothing to charge.

        The server notes the public charge of each round too. A site refuses a contribution that its own ledger shows to be beyond the
        claim (``spent_after`` of all its charges).
        """
        return None

    def spent_after(self, round: int) -> float | None:
        """Epsilon after this many rounds, for the budget stop. None: no claim."""
        return None


class PrivacyMechanism(ABC):
    """Binds its config to a run, or says why a claim would be false."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def misfits(self, setting: PrivacySetting, personalization: Any, model: Any) -> list[str]:
        """All reasons why the claim would not hold in this combination."""
        return []

    @abstractmethod
    def plan(self, setting: PrivacySetting) -> PrivacyPlan:
        """The mechanism for this run."""

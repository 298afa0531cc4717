'''Privacy mechanisms: gradient rule, clip, noise and its charge.

A mechanism is planned once for a run and then consulted at fixed places of the round: ``gradient_rule`` inside training, ``constrain``
and ``noise`` on the flat update at the site, ``charge`` before anything noisy leaves. ``none`` does nothing and claims nothing.
'''

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

    @property
    @abstractmethod
    def statement(self) -> PrivacyStatement:
        """The claim for the whole run."""

    def gradient_rule(self, plain: GradientRule) -> GradientRule:
        """The rule local training uses in place of plain autograd."""
        return plain

    def constrain(self, flat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The clipped flat update."""
        return flat

    def noise(self, flat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The update with real-valued noise (placement ``local``)."""
        return flat

    def integer_noise(self, values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The integers with this site's share of noise (placement ``distributed``)."""
        return values

    def server_noise(self, total: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The decoded sum with noise (placement ``server``)."""
        return total

    def charge(self, round: int) -> Mapping[str, Any] | None:
        """The ledger entry of one contribution; it is on disk before the contribution leaves. None: nothing to charge."""
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

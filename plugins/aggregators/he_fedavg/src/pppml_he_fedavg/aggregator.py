"""``he-fedavg``: checks value, cohort and back end, and plans the session."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core.component import ComponentConfig
from pppml_core.errors import PlanRefused
from pppml_core.interfaces.aggregation import Aggregator
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.values import ValueSpec
from pppml_he_fedavg.session import FEWEST, HeFedAvgSession

#: Rounding to the nearest integer then hides the error of an approximate scheme: half a unit is 12 standard deviations.
LARGEST_ERROR = 1 / 24
#: What a back end's parameters must give: classical security, and the chance that an exact sum is decrypted wrongly.
SECURITY_BITS, LOG2_FAILURE = 128, -64


class HeFedAvg(Aggregator):
    """The aggregator of that name."""

    def __init__(self, config: ComponentConfig, *, backend: HEBackend) -> None:
        super().__init__(config)
        self._backend = backend
        self._planned: dict[tuple[ValueSpec, int], HEParams] = {}

    def misfits(self, value: ValueSpec, cohort: Sequence[str]) -> list[str]:
        """Bounded integers, three sites or more, and a back end whose sums come out exactly."""
        try:
            self.plan(value, cohort)
        except PlanRefused as refused:
            return list(refused.misfits)
        return []

    def plan(self, value: ValueSpec, cohort: Sequence[str]) -> HeFedAvgSession:
        """The session. Raises PlanRefused with every reason there is."""
        reasons = super().misfits(value, cohort)
        if len(cohort) < FEWEST:
            reasons.append(f"aggregator: he-fedavg needs at least {FEWEST} sites, since whoever decrypts knows its own part; add sites")
        if value.kind == "integer" and value.bound is None:
            reasons.append("aggregator: he-fedavg needs bounded integers; use `encoding: fixed`")
        if reasons:
            raise PlanRefused(reasons)
        params = self._parameters(value, len(cohort) + 1)  # the server's encryption of zero is one more
        place = f"aggregator.backend: {params.backend} {params.scheme}"
        if params.security_bits < SECURITY_BITS:
            reasons.append(f"{place}: its parameters give {params.security_bits} bits of security, at least {SECURITY_BITS} are needed")
        error, failure = params.error_std, params.log2_failure
        if params.arithmetic == "approximate" and not (error is not None and error <= LARGEST_ERROR):
            reason = f"the error of a sum has a standard deviation of {error} units, at most 1/24 can be rounded away"
            reasons.append(f"{place}: {reason}; raise the scale or use `scheme: bfv`")
        if params.details.get("preset") == "paper":
            reasons.append(f"{place}: preset paper is for `cyclic-he` with `variant: paper` only; leave `preset` out")
        if params.arithmetic == "exact" and not (failure is not None and failure <= LOG2_FAILURE):
            reasons.append(f"{place}: a sum may be decrypted wrongly with a chance above 2^{LOG2_FAILURE}; use larger parameters")
        if reasons:
            raise PlanRefused(reasons)
        return HeFedAvgSession(value, cohort, self._backend, params)

    def _parameters(self, value: ValueSpec, additions: int) -> HEParams:
        """Planned once: a session is planned several times a round."""
        if (value, additions) not in self._planned:
            self._planned[value, additions] = self._backend.plan(value, additions)
        return self._planned[value, additions]

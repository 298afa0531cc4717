"""``cyclic-he``: checks value, cohort and back end, and plans the session of the chosen variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pppml_core.component import ComponentConfig
from pppml_core.errors import PlanRefused
from pppml_core.interfaces.aggregation import Aggregator, Session
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.values import ValueSpec
from pppml_cyclic_he.config import CyclicHEConfig
from pppml_cyclic_he.session import HardenedSession
from pppml_cyclic_he.template import largest_rings

#: largest standard deviation of an approximate sum, in units of its integers: then a wrong nearest integer is a matter of 12 of them.
LARGEST_ERROR = 1 / 24


class CyclicHE(Aggregator):
    """Sums along rings of sites."""

    def __init__(self, config: ComponentConfig, backend: HEBackend) -> None:
        super().__init__(config)
        self._backend = backend
        self._planned: dict[tuple[ValueSpec, int], HEParams] = {}

    def misfits(self, value: ValueSpec, cohort: Sequence[str]) -> list[str]:
        """All reasons why this cohort and value cannot be summed."""
        out = super().misfits(value, cohort)
        settings = cast("CyclicHEConfig", self.config)
        if settings.variant == "paper":
            return [*out, *_paper().misfits(self._backend, value, cohort)]
        count = len(cohort)
        if count < 3:
            return [
                *out,
                f"aggregator: {count} sites: a ring needs at least 3, for of two each would learn the other's update; add sites",
            ]
        if settings.rings != "auto" and settings.rings > largest_rings(count):
            out.append(
                f"aggregator.rings: {count} sites walk at most {largest_rings(count)} ({(count - 1) // 2} without a common edge), not"
                f" {settings.rings}; lower it, or `rings: auto`"
            )
        if value.kind == "integer" and value.bound is None:
            out.append("aggregator: the value has no bound; use `encoding: fixed`")
        if out:
            return out
        try:
            params = self._params(value, count)
        except PlanRefused as error:
            return [*out, *error.misfits]
        return [*out, *_misfits_of(params, settings)]

    def plan(self, value: ValueSpec, cohort: Sequence[str]) -> Session:
        """The session for this value and cohort. Raises PlanRefused with every reason there is."""
        if misfits := self.misfits(value, cohort):
            raise PlanRefused(misfits)
        settings = cast("CyclicHEConfig", self.config)
        if settings.variant == "paper":
            session: Session = _paper().PaperSession(value, cohort, self._backend)
            return session
        params = self._params(value, len(cohort))
        most = min(2, largest_rings(len(cohort))) if params.arithmetic == "exact" else 1
        return HardenedSession(value, cohort, most if settings.rings == "auto" else settings.rings, params, self._backend)

    def _params(self, value: ValueSpec, additions: int) -> HEParams:
        """The encryption's parameters; planned once, for a session is planned several times a round."""
        if (value, additions) not in self._planned:
            self._planned[value, additions] = self._backend.plan(value, additions)
        return self._planned[value, additions]


def _misfits_of(params: HEParams, settings: CyclicHEConfig) -> list[str]:
    out = []
    if params.details.get("preset") == "paper":
        out.append("aggregator.backend: preset paper is for `variant: paper` only; leave `preset` out")
    if params.security_bits < 128:
        out.append(f"aggregator.backend: {params.security_bits} bits of security; at least 128 are needed")
    if params.arithmetic == "exact":
        if params.log2_failure is None or params.log2_failure > -64:
            out.append("aggregator.backend: decryption fails more often than once in 2**64; choose larger parameters")
        return out
    if settings.rings not in ("auto", 1):
        out.append("aggregator.rings: approximate encryption goes along one ring only; use `rings: 1`, or an exact scheme (bfv)")
    if params.error_std is None or params.error_std > LARGEST_ERROR:
        error = "unknown" if params.error_std is None else f"{params.error_std:.3g}"
        out.append(
            f"aggregator.backend: the error of a sum ({error}) is above 1/24 of a unit, so nearest integers are not exact; raise the"
            " scale, lower `encoding.bits`, or use an exact scheme (bfv)"
        )
    return out


def _paper() -> Any:
    from pppml_cyclic_he import paper

    return paper

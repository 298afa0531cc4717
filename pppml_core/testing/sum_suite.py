"""What the suites of secure sums share: settings, one session at a time, and what must hold of its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, get_args

import numpy as np
import pytest

from pppml_core.engines.faults import Deed
from pppml_core.errors import RoundAborted, RoundLost
from pppml_core.interfaces.aggregation import Guarantees
from pppml_core.interfaces.engine import Topology
from pppml_core.testing.harness import HarnessResult, SessionHarness, exact_sum, site_names
from pppml_core.testing.suite import Suite

both_topologies = pytest.mark.parametrize("topology", get_args(Topology))


class SumSuite(Suite):
    """Settings and helpers of :class:`~pppml_core.testing.AggregatorSuite`."""

    sites: ClassVar[int] = 4
    min_sites: ClassVar[int] = 2
    max_sites: ClassVar[int] = 8
    length: ClassVar[int] = 50
    bound: ClassVar[int] = 32_767
    largest_bound: ClassVar[int] = 2**23 - 1
    kind: ClassVar[str] = "integer"

    #: what one vanished site more than promised ends in; TooFewSurvivors for a protocol with a threshold.
    too_many_lost: ClassVar[type[RoundAborted]] = RoundAborted
    #: whether losing one site more than ``guarantees.dropouts`` costs the round (else it only may).
    dropouts_exact: ClassVar[bool] = True
    #: random schedules of several faults that are tried.
    schedules: ClassVar[int] = 60
    #: malformed variants of one message.
    variants: ClassVar[int] = 40
    #: lies of a site about one of its replies, each a session of its own.
    lies: ClassVar[int] = 10

    # -- helpers ----------------------------------------------------------------------------------------------------------------------

    def harness(self, sites: int | Sequence[str] | None = None, **options: Any) -> SessionHarness:
        """A harness for this component."""
        options = {"length": self.length, "bound": self.bound, "kind": self.kind, **options}
        return SessionHarness(self.make(), self.sites if sites is None else sites, **options)

    def run(self, sites: int | Sequence[str] | None = None, *faults: Mapping[str, Any], **options: Any) -> HarnessResult:
        """One session."""
        return self.harness(sites, faults=faults, **options).run()

    def stages(self) -> tuple[str, ...]:
        """All stages: those of an undisturbed session in their order, then those declared besides."""
        declared = (field.stage for field in self.harness().session().fields)
        return tuple(dict.fromkeys([*self.run().transcript.stages(), *declared]))

    def single_faults(self, *deeds: Deed) -> Iterator[dict[str, Any]]:
        """Each deed, at each site, at each stage."""
        for stage in self.stages():
            for site in site_names(self.sites):
                yield from ({"site": site, "stage": stage, "do": deed} for deed in deeds)

    def vanished_twice(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """A first drop, and a second one in a stage that only the first brings about (the recovery of a vanished site)."""
        usual = set(self.run().transcript.stages())
        seen: set[str] = set()
        for first in self.single_faults("drop"):
            for stage in self.run(None, first).transcript.stages():
                if stage not in usual | seen:
                    seen.add(stage)
                    others = [site for site in site_names(self.sites) if site != first["site"]]
                    yield from ((first, {"site": site, "stage": stage, "do": "drop"}) for site in others)

    def assert_sum(self, result: HarnessResult, case: object) -> None:
        """The right sum over exactly the survivors."""
        assert result.aborted is None, f"{case}: aborted: {result.aborted}"
        assert result.correct, f"{case}: the sum is not that of the survivors {result.survivors}"

    def assert_sum_or_abort(self, result: HarnessResult, case: object) -> None:
        """The right sum over the survivors, or an abort; never a wrong sum, never a crash at a site."""
        assert not result.crashes, f"{case}: crashed instead of refusing: {result.crashes}"
        assert result.aborted is not None or result.correct, f"{case}: a wrong sum, said to be over {result.survivors}"

    def assert_undisturbed(self, result: HarnessResult, case: object) -> None:
        """The right sum over all sites; no site was lost."""
        assert not result.losses, f"{case}: sites were lost: {result.losses}"
        self.assert_sum(result, case)
        assert set(result.survivors) == set(result.contributions), f"{case}: survivors are {result.survivors}"

    @property
    def guarantees(self) -> Guarantees:
        """What is promised for ``sites``."""
        return self.harness().session().guarantees

    def honest_parts(self, result: HarnessResult, coalition: Sequence[str]) -> set[frozenset[str]]:
        """The sets of sites outside the coalition whose sum it can decode in some attempt; each value is checked."""
        out = set()
        for attempt in result.attempts:
            session = self.harness().session(attempt.cohort)
            for exposure in session.exposed(result.view(coalition, attempt.number)):
                truth = exact_sum((result.contributions[site] for site in exposure.sites), self.length)
                close = np.allclose(exposure.value.astype(float), truth.astype(float), rtol=1e-6, atol=1e-3)
                assert close, f"{coalition}: the value exposed for {exposure.sites} is not their sum"
                out.add(frozenset(exposure.sites) - set(coalition))
        return out - {frozenset()}


def released_parts(result: HarnessResult, coalition: Sequence[str]) -> set[frozenset[str]]:
    """The sums that a lost round may have given away: those that sites released, less the coalition's own parts. None of a round that
    may start again.
    """
    if not isinstance(result.aborted, RoundLost):
        return set()
    return {frozenset(over) - set(coalition) for sets in result.released.values() for over in sets}

"""The conformance suite, on the complete graph and on a ring."""

from __future__ import annotations

from typing import Any

import pytest

from pppml_core.errors import TooFewSurvivors
from pppml_core.testing.aggregator_suite import AggregatorSuite
from pppml_core.testing.harness import SessionHarness
from pppml_core.testing.suite import overrides_suite_test
from pppml_secagg_plus.plugin import pppml_aggregators


class _Remembering(AggregatorSuite):
    """Secrets are wiped as early as possible, but a curious site keeps what it has held: a coalition's memory is part of its view."""

    component = pppml_aggregators()[0]
    remember = False
    # The plugin has schedules and lies of its own: test_dropouts, test_lying_server.
    schedules = 20
    variants = 20
    lies = 4

    @pytest.fixture(autouse=True)
    def _memory(self, request: pytest.FixtureRequest) -> None:
        self.remember = "coalition" in request.node.name or "two_sums" in request.node.name

    def harness(self, sites: Any = None, **options: Any) -> SessionHarness:
        return super().harness(sites, **{"remember": self.remember, **options})


class TestComplete(_Remembering):
    min_sites = 3
    too_many_lost = TooFewSurvivors


class TestRing(_Remembering):
    """Each site masks towards the two beside it: the smallest ring, which tolerates no loss; three sites are a complete graph."""

    config = {"neighbours": 2, "threshold": 3}
    schedules = 10
    variants = 5
    lies = 2
    min_sites = 3
    max_sites = 7

    @overrides_suite_test(reason="Without a loss that is tolerated no key is rebuilt: key shares are sent by larger rings, see test_ring.")
    def test_declared_is_what_is_sent(self) -> None:
        sent = {(m.stage, name) for m in (p.message for p in self.run().transcript.sent_by_sites()) for name in m.body}
        declared = {(field.stage, field.name.removesuffix(".*")) for field in self.harness().session().fields}
        assert sent == declared

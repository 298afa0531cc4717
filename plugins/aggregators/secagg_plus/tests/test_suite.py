"""The conformance suite, on the complete graph and on sparse ones."""

from __future__ import annotations

from typing import Any

from pppml_core.testing.aggregator_suite import AggregatorSuite
from pppml_core.testing.harness import SessionHarness
from pppml_secagg_plus.plugin import pppml_aggregators


class _Remembering(AggregatorSuite):
    """Secrets are wiped as early as possible, but a curious site keeps what it has held: the coalition's memory is part of its view."""

    component = pppml_aggregators()[0]

    def harness(self, sites: Any = None, **options: Any) -> SessionHarness:
        return super().harness(sites, **{"remember": True, **options})


class TestComplete(_Remembering):
    min_sites = 3


class TestFourOfSix(_Remembering):
    """A threshold below n - 1: four sites with the server are one too many."""

    config = {"threshold": 4}
    sites = 6
    min_sites = 4
    max_sites = 6


class TestSparse(_Remembering):
    """A ring of six with four neighbours each."""

    config = {"preset": "paper"}
    sites = 7
    min_sites = 5

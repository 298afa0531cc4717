"""The conformance kit, on a back end that encrypts nothing: with one ring.

Of three sites none is bridged, so some of it is asked of four. Other losses, lies and coalitions are in the other files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pppml_core.testing import AggregatorSuite, HarnessResult, PluginSuite
from pppml_core.testing.harness import exact_sum
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_cyclic_he.plugin import pppml_aggregators

CONFIG = TransparentConfig(security_bits=128)


class Curious(AggregatorSuite):
    """Coalitions that remember what an honest party forgets."""

    component = pppml_aggregators()[0]
    choices = {"backend": TransparentBackend(CONFIG)}
    min_sites = 3
    length = 5

    @pytest.fixture(autouse=True)
    def _memory(self, request: pytest.FixtureRequest) -> None:
        if any(word in request.node.name for word in ("declared", "coalition", "dropout", "vanish")):
            self.sites = 4
        # Where it is asked what is exposed; everywhere else the sites are honest ones, that forget.
        if any(word in request.node.name for word in ("coalition", "another_model", "release", "attempts")):
            self.memory = request.getfixturevalue("memory")

    def honest_parts(self, result: HarnessResult, coalition: Sequence[str]) -> set[frozenset[str]]:
        out = set()
        for attempt in result.attempts:
            view = self.memory.view(result, coalition, attempt.number)
            for exposure in self.harness().session(attempt.cohort).exposed(view):
                truth = exact_sum((result.contributions[site] for site in exposure.sites), self.length)
                assert np.array_equal(exposure.value.astype(object), truth), f"{coalition}: {exposure.sites}: not their sum"
                out.add(frozenset(exposure.sites) - set(coalition))
        return out - {frozenset()}


class TestOneRing(Curious):
    """Two rings: the other files here."""

    config = {"rings": 1, "backend": CONFIG}
    sites = 3
    max_sites = 5
    schedules = 12
    variants = 8
    lies = 3


class TestPlugin(PluginSuite):
    plugin = "pppml_cyclic_he.plugin"

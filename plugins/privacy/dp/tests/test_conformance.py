"""Every mechanism passes the kit, at each placement, with both kinds of noise."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest

from pppml_core.component import Component
from pppml_core.testing import PrivacySuite
from pppml_core.testing.privacy_bench import Stated
from pppml_dp.plugin import pppml_privacy_mechanisms

pytestmark = pytest.mark.usefixtures("stated_epsilon_alone")


def component(name: str) -> Component:
    return next(c for c in pppml_privacy_mechanisms() if c.name == name)


class OfGradients(PrivacySuite):
    __test__ = False
    component = component("dp-sgd")
    quiet: ClassVar = {"noise_multiplier": 0.0}
    noisier: ClassVar = {"noise_multiplier": 2.0}


class TestLocal(OfGradients):
    __test__ = True
    config: ClassVar = {"placement": "local", "noise_multiplier": 1.0, "clip": 0.8}
    noise_in_rule = True

    def step(self, plan) -> float:
        """The gradient is divided by the expected batch after it was noised on the grid, whose clip is this many steps."""
        details = plan.statement.details
        steps = (details["integer_sensitivity"] - math.sqrt(plan._setting.coordinates)) / 1.001
        return details["clip"] / steps / details["expected_batch"]


class TestDistributed(OfGradients):
    __test__ = True
    config: ClassVar = {"placement": "distributed", "noise_multiplier": 1.0, "clip": 0.8}
    colluders = 1


class TestDistributedSkellam(TestDistributed):
    config: ClassVar = {**TestDistributed.config, "noise": "skellam"}
    slack = 0.5


class TestServerForPatientsByLayers(OfGradients):
    __test__ = True
    config: ClassVar = {"placement": "server", "noise_multiplier": 1.0, "clip": 0.8, "unit": "patient", "clipping": "per-layer"}

    def clipped(self, gradient, clip):
        """The suite's network has three modules with two parameters each, and each of them a third of the squared clip."""
        pairs = zip(gradient[0::2], gradient[1::2], strict=True)
        bound = clip / math.sqrt(3)
        return [g * min(1.0, bound / math.hypot(w.norm(), b.norm())) for w, b in pairs for g in (w, b)]


class OfUpdates(PrivacySuite):
    __test__ = False
    component = component("dp-update")
    quiet: ClassVar = {"noise_multiplier": 0.0}
    noisier: ClassVar = {"noise_multiplier": 2.0}


class TestUpdateLocal(OfUpdates):
    __test__ = True
    config: ClassVar = {"placement": "local", "noise_multiplier": 1.0, "clip": 0.8}


class TestUpdateDistributed(OfUpdates):
    __test__ = True
    config: ClassVar = {"placement": "distributed", "noise_multiplier": 1.0, "clip": 0.8}
    colluders = 1


class TestUpdateServer(OfUpdates):
    __test__ = True
    config: ClassVar = {"placement": "server", "noise_multiplier": 1.0, "clip": 0.8}


class TestClipOnly(PrivacySuite):
    component = component("clip-only")
    config: ClassVar = {"clip": 0.8}

    def step(self, plan) -> float:
        """There are no integers: the clip is the step, and one example moves the sum by one of it. An expected batch has 20 examples."""
        return 0.8 / 20

    def stated(self, plan) -> Stated:
        return Stated(sensitivity=1 + 1e-3, share_variance=0.0)


class TestClipOnlySites(TestClipOnly):
    config: ClassVar = {"clip": 0.8, "unit": "site"}

    def step(self, plan) -> float:
        return plan.encoding(1).range / (2**23 - 1)

    def stated(self, plan) -> Stated:
        return Stated(sensitivity=1.001 * 0.8 / self.step(plan) + 64, share_variance=0.0)

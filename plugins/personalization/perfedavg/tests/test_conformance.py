"""Every order and every choice of statistics passes the kit."""

from typing import ClassVar

import torch

from pppml_core.learning.gradients import plain_gradients
from pppml_core.testing import PersonalizationSuite, PluginSuite
from pppml_perfedavg.plugin import pppml_personalizations


class TestPlugin(PluginSuite):
    plugin = "pppml_perfedavg.plugin"


class PerFedAvgSuite(PersonalizationSuite):
    __test__ = False
    component = pppml_personalizations()[0]
    zero_rates: ClassVar = {"adapt_lr": 0.0}


class TestFirst(PerFedAvgSuite):
    __test__ = True


class TestHessianFree(PerFedAvgSuite):
    __test__ = True
    config = {"order": "hessian-free", "inner_lr": 0.05}


class TestExact(PerFedAvgSuite):
    __test__ = True
    config = {"order": "exact", "inner_lr": 0.05}


class TestLocalStatistics(PerFedAvgSuite):
    __test__ = True
    config = {"batch_norm": "local", "adapt_steps": 3}


class TestFixedStatistics(PerFedAvgSuite):
    __test__ = True
    config = {"batch_norm": "frozen", "order": "hessian-free", "hessian_step": 0.1}


class TestInnerRateZero(PerFedAvgSuite):
    __test__ = True
    config = {"inner_lr": 0.0, "order": "exact"}

    def test_an_update_is_fedavgs_bit_for_bit(self) -> None:
        from pppml_core.builtin.configs import FedAvgConfig
        from pppml_core.builtin.fedavg import FedAvg

        update, _, _ = self.updated(self.make())
        expected, _ = FedAvg(FedAvgConfig()).local_update(
            self.network(), self.data(), plain_gradients(torch.nn.functional.cross_entropy), {}
        )
        assert update.delta.keys() == expected.delta.keys()
        assert all(torch.equal(update.delta[n], d) for n, d in expected.delta.items())
        assert update.metrics == expected.metrics

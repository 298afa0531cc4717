from pppml_core.builtin.configs import PlainConfig
from pppml_core.component import Component
from pppml_core.testing.aggregator_suite import AggregatorSuite
from pppml_core.testing.insecure_plugin import pppml_aggregators as insecure_aggregators

PLAIN = Component("plain", PlainConfig, "pppml_core.builtin.plain:Plain", "sum in the clear")


class TestPlain(AggregatorSuite):
    component = PLAIN
    min_sites = 1


class TestPlainOnReals(AggregatorSuite):
    component = PLAIN
    min_sites = 1
    kind = "real"


class TestInsecureMaskedSum(AggregatorSuite):
    component = insecure_aggregators()[0]


class TestInsecureRing(AggregatorSuite):
    component = insecure_aggregators()[1]

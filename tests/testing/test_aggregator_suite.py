from pppml_core.builtin.plugin import pppml_aggregators
from pppml_core.errors import TooFewSurvivors
from pppml_core.testing.aggregator_suite import AggregatorSuite
from pppml_core.testing.insecure_plugin import pppml_aggregators as insecure_aggregators


class TestPlain(AggregatorSuite):
    component = pppml_aggregators()[0]
    too_many_lost = TooFewSurvivors
    min_sites = 1


class TestPlainOnReals(TestPlain):
    kind = "real"


class TestInsecureMaskedSum(AggregatorSuite):
    component = insecure_aggregators()[0]
    dropouts_exact = False


class TestInsecureRing(AggregatorSuite):
    component = insecure_aggregators()[1]

from pppml_core.testing import PersonalizationSuite, PluginSuite
from pppml_perfedavg.plugin import pppml_personalizations


class TestFirst(PersonalizationSuite):
    component = pppml_personalizations()[0]
    zero_rates = {"adapt_lr": 0.0}


class TestHF(TestFirst):
    config = {"order": "hessian-free"}


class TestExact(TestFirst):
    config = {"order": "exact"}


class TestLocal(TestFirst):
    config = {"batch_norm": "local"}


class TestFrozen(TestFirst):
    config = {"batch_norm": "frozen", "order": "exact"}


class TestZero(TestFirst):
    config = {"inner_lr": 0}

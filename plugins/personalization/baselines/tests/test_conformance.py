"""Every method passes the kit, at its defaults and at settings that change what it does."""

from typing import Any

from pppml_core.component import Component
from pppml_core.testing import PersonalizationSuite, PluginSuite
from pppml_personalization_baselines.plugin import pppml_personalizations


def component(name: str) -> Component:
    return next(c for c in pppml_personalizations() if c.name == name)


class TestFineTune(PersonalizationSuite):
    component = component("fedavg-finetune")
    zero_rates = {"lr": 0.0}


class TestFineTuneSteps(TestFineTune):
    config = {"steps": 2, "lr": 0.05}


class TestFedProx(PersonalizationSuite):
    component = component("fedprox")
    config = {"mu": 0.5}


class TestFedBN(PersonalizationSuite):
    component = component("fedbn")

    def trained(self, rule: Any, sites: Any, rounds: int) -> Any:
        """Longer: sites that name the same images differently can be told apart by a few scales and shifts, but not after five rounds."""
        return super().trained(rule, sites, 4 * rounds)


class TestFedBNAll(TestFedBN):
    config = {"layers": "all", "adapt_steps": 2}


class TestDitto(PersonalizationSuite):
    component = component("ditto")


class TestDittoLonger(TestDitto):
    config = {"strength": 1.0, "personal_steps": 5}


class TestFedPer(PersonalizationSuite):
    component = component("fedper")


class TestFedPerPatterns(TestFedPer):
    config = {"head": ("head.*", "norm")}


class TestFedRep(PersonalizationSuite):
    component = component("fedrep")


class TestFedRepLonger(TestFedRep):
    config = {"head_steps": 5, "head": "norm"}


class TestAPFL(PersonalizationSuite):
    component = component("apfl")
    zero_rates = {"alpha_lr": 0.0}


class TestAPFLFixed(TestAPFL):
    config = {"alpha": 0.25, "alpha_lr": 0.0}


class TestPlugin(PluginSuite):
    plugin = "pppml_personalization_baselines.plugin"

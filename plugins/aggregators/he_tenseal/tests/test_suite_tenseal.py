from __future__ import annotations

from pppml_core.testing import HEBackendSuite, PluginSuite
from pppml_he_tenseal.plugin import pppml_he_backends

(TENSEAL,) = pppml_he_backends()


class TestPlugin(PluginSuite):
    plugin = "pppml_he_tenseal.plugin"


class TestBFV(HEBackendSuite):
    component = TENSEAL


class TestCKKS(HEBackendSuite):
    component = TENSEAL
    config = {"scheme": "ckks"}
    largest_bound = 2**20

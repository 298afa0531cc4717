from __future__ import annotations

import pytest

pytest.importorskip("Pyfhel", reason="Pyfhel is not installed: python plugins/aggregators/he_pyfhel/scripts/build_pyfhel.py .cache/wheels")

from pppml_core.testing import HEBackendSuite, PluginSuite
from pppml_he_pyfhel.plugin import pppml_he_backends

(PYFHEL,) = pppml_he_backends()


class TestPlugin(PluginSuite):
    plugin = "pppml_he_pyfhel.plugin"


class TestBFV(HEBackendSuite):
    component = PYFHEL


class TestBGV(HEBackendSuite):
    component = PYFHEL
    config = {"scheme": "bgv"}


class TestCKKS(HEBackendSuite):
    component = PYFHEL
    config = {"scheme": "ckks"}
    largest_bound = 2**20
    most_additions = 100

from pppml_core.testing import HEBackendSuite
from pppml_core.testing.insecure_plugin import pppml_he_backends


class TestTransparent(HEBackendSuite):
    component = pppml_he_backends()[0]
    toy = True
    header_bytes = 56


class TestTransparentWithASmallModulus(TestTransparent):
    config = {"modulus": 65_537}
    additions = 5

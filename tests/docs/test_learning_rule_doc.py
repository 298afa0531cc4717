"""The learning rule in docs/write-a-plugin.md passes the suite that the page says judges it."""

import re
import sys
import types
from pathlib import Path

import pytest

from pppml_core.cli.new_plugin import kinds
from pppml_core.interfaces.personalization import Personalization
from pppml_core.testing import PersonalizationSuite

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
PART = TEXT.split("\n## Another kind: a learning rule\n")[1].split("\n## ")[0]
RULE, TEST = re.findall(r"```python\n(.*?)```", PART, re.DOTALL)
TESTS = [name for name in dir(PersonalizationSuite) if name.startswith("test_")]


@pytest.fixture(scope="module")
def suite():
    module = types.ModuleType("my_module")
    sys.modules["my_module"] = module
    exec(compile(RULE + TEST, "docs/write-a-plugin.md", "exec"), module.__dict__)
    yield module.TestPull()
    del sys.modules["my_module"]


@pytest.mark.parametrize("test", TESTS)
def test_the_rule_passes_the_suite(suite, test):
    getattr(suite, test)()


def test_the_names_in_the_text_are_those_of_the_contract():
    assert "personalization" in kinds()
    for name in (
        "gradient_calls",
        "batches_per_step",
        "needs_hessian",
        "shares_one_gradient",
        "misfits",
        "remarks",
        "adapt",
        "personalizes",
    ):
        assert hasattr(Personalization, name)
        assert f"`{name}`" in PART, name
    (anchor,) = re.findall(r"conformance\.md#([\w-]+)", PART)
    headings = re.findall(r"^## (.*)$", (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text(), re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]

"""docs/hooks.md says what hookspecs.py, the interfaces and the built-ins say."""

import re
from pathlib import Path

import pytest

from pppml_core import hookspecs
from pppml_core.adhoc import INTERFACES, interface
from pppml_core.component import KINDS
from pppml_core.registry import Registry

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "hooks.md").read_text()
SECTIONS = {
    match[1]: " ".join(match[2].split()) for match in re.finditer(r"^## `(\w+)`\n(.*?)(?=^## )", TEXT, flags=re.MULTILINE | re.DOTALL)
}


def test_every_hook_has_a_heading_in_order_and_no_other():
    specified = [name for name in vars(hookspecs) if name.startswith("pppml_") and hasattr(vars(hookspecs)[name], "pppml_spec")]
    assert list(SECTIONS) == specified == list(KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_kind_target_and_built_ins(kind):
    section = SECTIONS[KINDS[kind]]
    assert section.startswith(f"Kind `{kind}`, ")
    assert f"`{INTERFACES[kind]}`" in section
    assert interface(kind).__module__ == INTERFACES[kind].partition(":")[0]
    built_in = [component.name for component in Registry.only().components(kind)]
    listed = re.findall(r"`([^`]+)`", section.partition("Built in:")[2])
    assert listed == built_in


@pytest.mark.parametrize("kind", KINDS)
def test_the_hooks_own_docstring_agrees(kind):
    doc = getattr(hookspecs, KINDS[kind]).__doc__
    assert INTERFACES[kind].replace(":", ".") in doc
    for component in Registry.only().components(kind):
        assert f"``{component.name}``" in doc


def test_the_example_is_the_rule():
    from packaging.requirements import Requirement

    (need,) = re.findall(r'dependencies = \["([^"]+)"\]', TEXT)
    assert Requirement(need).name == "pppml-core"
    assert "[project.entry-points.pppml]" in TEXT
    assert "PPPML_PLUGINS" in TEXT

"""A component that demands one of several settings: the suite asks for the fewest that it accepts, and holds the example to that."""

from pathlib import Path

import pytest

from pppml_core.testing import PluginSuite

SOURCE = """
from pydantic import Field, model_validator
from pppml_core import Component, ComponentConfig, hookimpl

class Settings(ComponentConfig):
    slow: int | None = Field(None, description="how slow")
    fast: int | None = Field(None, description="how fast")
    loud: bool = Field(False, description="with noise")

    @model_validator(mode="after")
    def _one_is_given(self):
        if self.slow is None and self.fast is None:
            raise ValueError("give slow or fast")
        return self

class Named(ComponentConfig):
    of: str = Field(description="of what")
    weights: str | None = Field(None, description="a file")

    @model_validator(mode="after")
    def _weights_are_said(self):
        if self.weights is None:
            raise ValueError("give weights")
        return self

@hookimpl
def pppml_tasks():
    target = "pppml_core.builtin.tiny:TinyTask"
    return [Component("paced", Settings, target, "a task"), Component("named", Named, target, "a task")]
"""
SOUND = {"paced": {"fast": 1}, "named": {"of": "a", "weights": "b"}}


@pytest.fixture
def suite_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make(examples, source: str = SOURCE, plugin: str = "demanding_plugin") -> PluginSuite:
        (tmp_path / f"{plugin}.py").write_text(source)
        (tmp_path / "README.md").write_text("`paced`: `slow`, `fast`, `loud`. `named`: `of`, `weights`.")
        monkeypatch.syspath_prepend(tmp_path)
        suite = {"plugin": plugin, "readme": tmp_path / "README.md", "examples": examples}
        return type("Demanding", (PluginSuite,), suite)()

    return make


def test_passes_with_examples(suite_of):
    suite = suite_of(SOUND)
    for name in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, name)()


def test_without_an_example_the_suite_asks_for_one(suite_of):
    with pytest.raises(AssertionError, match="paced is refused without settings: name the fewest it needs in `examples`"):
        suite_of({}).test_settings_have_defaults_and_descriptions()


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ({"paced": {"loud": True}}, "its example is refused"),
        ({"paced": {"fast": "very"}}, r"its example is refused \(\['fast'\]\)"),
        ({"paced": {"fast": 1, "loud": True}}, "does without `loud`"),
        ({"paced": {"fast": 1, "slow": 1}}, "does without `fast`"),
        ({"pacedd": {"fast": 1}}, r"examples of no component: \['pacedd'\]"),
        ({"named": {"of": "a"}}, "its example is refused"),
    ],
)
def test_an_example_that_is_wrong_or_says_more_than_it_must_is_caught(suite_of, examples, said):
    with pytest.raises(AssertionError, match=said):
        suite_of({**SOUND, **examples}).test_examples_are_the_fewest_settings()


def test_an_example_hides_no_default_that_is_refused(suite_of):
    suite = suite_of(SOUND, SOURCE.replace("Field(False, ", 'Field("loudly", validate_default=True, '), "refused_default_plugin")
    with pytest.raises(AssertionError, match=r"paced: the defaults of \['loud'\] are refused"):
        suite.test_settings_have_defaults_and_descriptions()


def test_a_component_that_needs_nothing_needs_no_example():
    suite = type("Builtin", (PluginSuite,), {"plugin": "pppml_core.builtin.plugin", "examples": {"plain": {}}})()
    with pytest.raises(AssertionError, match="plain needs no settings, so no example"):
        suite.test_examples_are_the_fewest_settings()

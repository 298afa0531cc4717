"""``Suite``: what all conformance suites share, and the guard that no inherited test is overridden in silence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pppml_core.component import Component, ComponentConfig

Test = TypeVar("Test", bound=Callable[..., Any])


def overrides_suite_test(*, reason: str) -> Callable[[Test], Test]:
    """Marks a test that takes the place of an inherited one, and says why. ``reason`` is a sentence."""
    if not reason.strip():
        raise TypeError("overrides_suite_test needs a reason")

    def mark(test: Test) -> Test:
        test.__suite_override__ = reason  # type: ignore[attr-defined]
        return test

    return mark


def silent_overrides(suite: type) -> list[str]:
    """Names of the kit's tests that a subclass has replaced without :func:`overrides_suite_test`."""
    kit = [c for c in suite.__mro__ if c.__module__.startswith("pppml_core.testing.")]
    names = sorted({name for c in kit for name in vars(c) if name.startswith("test")})
    out = []
    for name in names:
        original = next(vars(c)[name] for c in kit if name in vars(c))
        actual = inspect.getattr_static(suite, name)
        if actual is not original and not getattr(actual, "__suite_override__", None):
            out.append(name)
    return out


class Suite:
    """Base of the suites. A plugin's test module subclasses one, names a component and gives settings::

        class TestMySum(AggregatorSuite):
            component = pppml_aggregators()[0]
            config = {"threshold": 3}

    ``choices``: built objects for config fields that are choices themselves, as ``Target(config, **choices)`` takes them.
    """

    component: ClassVar[Component]
    config: ClassVar[Mapping[str, Any]] = {}
    choices: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if inspect.getattr_static(cls, "test_no_silent_overrides") is not vars(Suite)["test_no_silent_overrides"]:
            raise TypeError(f"{cls.__name__} overrides the guard test_no_silent_overrides, which cannot be overridden")

    def make(self, **unchecked: Any) -> Any:
        """The component's object. ``unchecked``: settings put in without validation, to reach values that a config forbids."""
        return self.build(self.component.config(**self.config).model_copy(update=unchecked))

    def build(self, settings: ComponentConfig) -> Any:
        """``Target(settings, **choices)``."""
        return self.component.load()(settings, **self.choices)

    def test_no_silent_overrides(self) -> None:
        """If this fails: give the test a name of its own, or mark it ``@overrides_suite_test(reason=...)``."""
        silent = silent_overrides(type(self))
        assert not silent, f"{', '.join(silent)} replaced without @overrides_suite_test(reason=...)"

"""``Component``: the description a plugin gives of one thing it offers, and ``ComponentConfig``, the base of its settings."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from pppml_core.errors import PluginError

#: Kind of component -> the hook that offers it. The order is the order of ``pppml plugins``.
KINDS: dict[str, str] = {
    "aggregator": "pppml_aggregators",
    "personalization": "pppml_personalizations",
    "privacy": "pppml_privacy_mechanisms",
    "attack": "pppml_attacks",
    "task": "pppml_tasks",
    "model": "pppml_models",
    "he-backend": "pppml_he_backends",
    "engine": "pppml_engines",
    "reporter": "pppml_reporters",
}
#: Settings that every task takes, whatever its own are; a config keeps them beside the task.
OF_ANY_TASK = ("pool", "leave_out")


class ComponentConfig(BaseModel):
    """Settings of one component. Unknown keys are errors; ``use`` is the component's name and is added by the registry.

    Give every field a description and a range: they become ``pppml schema`` and ``docs/config.md``. A field that is itself a choice
    among components is annotated ``Choice("he-backend")`` (see :class:`Choice`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Choice:
    """Marks a config field as a choice among the installed components of a kind.

    ``backend: Annotated[ComponentConfig, Choice("he-backend")]``. The registry binds it to the union of installed configs; the built
    component gets the built choice as a keyword argument of the field's name: ``Target(config, backend=built)``.
    """

    kind: str
    default: str | None = None


@dataclass(frozen=True)
class Component:
    """What a hook returns: a description, cheap to make, that imports nothing heavy.

    Args:
        name: how a config names it: lower case, words joined by ``-``.
        config: the pydantic model of its settings.
        target: ``"module:Class"``, imported on first build; called as ``Class(config, **built_choices)``.
        summary: one line for ``pppml plugins``.
        needs: top-level modules that must be importable; checked without importing them.
        cites: papers and standards the implementation follows.
    """

    name: str
    config: type[ComponentConfig]
    target: str
    summary: str
    needs: tuple[str, ...] = ()
    cites: tuple[str, ...] = ()
    #: the distribution that offers it; filled in by the registry.
    distribution: str = field(default="", compare=False)

    RESERVED: ClassVar[frozenset[str]] = frozenset({"use"})

    def missing(self) -> tuple[str, ...]:
        """The needed top-level modules that are not installed."""
        return tuple(need for need in self.needs if importlib.util.find_spec(need.partition(".")[0]) is None)

    def load(self) -> Any:
        """Import and return the target. Raises PluginError that names module and remedy."""
        if missing := self.missing():
            raise PluginError(
                f"{self.name!r} needs {', '.join(missing)}, not installed here.",
                place=self.distribution or self.name,
                hint=f"pip install {' '.join(missing)}",
            )
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            reason = f"{self.name!r} cannot be loaded from {self.target}: {error}"
            hint = "install it again; if that does not help, report this to its author"
            raise PluginError(reason, place=self.distribution, hint=hint) from error

"""Components without a plugin: ``use: "module:attribute"``, and live Python objects given through the API.

A researcher's own torch module or task becomes a component here, without entry point and without config class.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from pppml_core.component import Choice, ComponentConfig
from pppml_core.errors import ConfigError

#: Kind -> the interface its objects implement, imported on first build only.
INTERFACES: dict[str, str] = {
    "aggregator": "pppml_core.interfaces.aggregation:Aggregator",
    "personalization": "pppml_core.interfaces.personalization:Personalization",
    "privacy": "pppml_core.interfaces.privacy:PrivacyMechanism",
    "attack": "pppml_core.interfaces.attack:Attack",
    "task": "pppml_core.interfaces.task:Task",
    "model": "pppml_core.interfaces.model:ModelFactory",
    "he-backend": "pppml_core.interfaces.he:HEBackend",
    "engine": "pppml_core.interfaces.engine:Engine",
    "reporter": "pppml_core.interfaces.reporter:Reporter",
}
_CALLABLE_MODEL = "pppml_core.builtin.adapters:CallableModel"


class AttributeConfig(ComponentConfig):
    """``{use: "module:attribute", args: {...}}``: anything importable, without a plugin."""

    use: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", description="module:attribute to import")
    args: dict[str, Any] = Field(default_factory=dict, description="its settings, or the arguments it is called with")


class ObjectConfig(ComponentConfig):
    """``{use: object}``: a Python object given through the API; only that process can build it."""

    use: Literal["object"]
    key: str | None = Field(None, description="which of the given objects; default: the kind's name")
    about: str = Field("", description="what it is, for the record of the run")
    args: dict[str, Any] = Field(default_factory=dict, description="its settings, or the arguments it is called with")


class AdHocConfig(ComponentConfig):
    """The settings of a component that has no config class: each argument is an attribute."""

    model_config = ConfigDict(extra="allow", frozen=True)


def choice_of(field: FieldInfo) -> Choice | None:
    """The ``Choice`` that marks a config field: on the field itself, or on the items of its list."""
    for mark in field.metadata:
        if isinstance(mark, Choice):
            return mark
    return _inside(field.annotation)


def _inside(annotation: Any) -> Choice | None:
    for part in typing.get_args(annotation):
        mark = part if isinstance(part, Choice) else _inside(part)
        if mark is not None:
            return mark
    return None


def interface(kind: str) -> Any:
    """The class that objects of a kind derive from."""
    return _attribute(INTERFACES[kind])


def _attribute(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def imported(kind: str, target: str) -> Any:
    """What ``module:attribute`` names. Raises ConfigError."""
    module = target.partition(":")[0]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise _not_imported(kind, target, error) from error
    except Exception as error:  # the module is somebody's own code, which raises whatever it likes
        reason = f"{module!r} raises {type(error).__name__} when it is imported: {error}"
        raise ConfigError(" ".join(reason.split()), place=kind, hint="correct it; --debug shows where it is raised") from error
    try:
        return _attribute(target)
    except AttributeError as error:
        raise _not_imported(kind, target, error) from error


def _not_imported(kind: str, target: str, error: Exception) -> ConfigError:
    hint = "modules are looked for in the current folder and where Python looks; a file net.py is `net:Name`"
    return ConfigError(f"cannot import {target!r}: {error}", place=kind, hint=hint)


def assemble(kind: str, thing: Any, args: Mapping[str, Any], place: str) -> Any:
    """The object of this kind that ``thing`` stands for: a class of the interface, an instance, or for model and task a callable.

    Raises ConfigError where it cannot serve.
    """
    wanted = interface(kind)
    if isinstance(thing, wanted):
        _no_args(args, place)
        return thing
    if isinstance(thing, type) and issubclass(thing, wanted):
        if lacking := sorted(getattr(thing, "__abstractmethods__", ())):
            raise ConfigError(f"{_name(thing)} lacks {', '.join(lacking)}", place=place, hint=f"define what {wanted.__name__} asks for")
        return thing(_settings(thing, args, place))
    if kind == "model":
        return _attribute(_CALLABLE_MODEL)(AdHocConfig(**args), thing, place)
    if kind == "task" and callable(thing):
        built = thing(**_checked_call(thing, args, place))
        if isinstance(built, wanted):
            return built
        raise ConfigError(f"returned {type(built).__name__}, not a Task", place=place, hint="return a pppml_core.interfaces.task.Task")
    path = INTERFACES[kind].replace(":", ".")
    raise ConfigError(f"{_name(thing)} is no {wanted.__name__}", place=place, hint=f"derive it from {path}")


def _settings(target: type, args: Mapping[str, Any], place: str) -> ComponentConfig:
    """The config a class is built with: of the class its constructor's ``config`` is annotated with, else each argument an attribute."""
    try:
        wanted = typing.get_type_hints(target.__init__).get("config", ComponentConfig)  # type: ignore[misc]
    except NameError:  # an annotation that only type checkers can resolve
        wanted = ComponentConfig
    if not (isinstance(wanted, type) and issubclass(wanted, ComponentConfig)) or wanted is ComponentConfig:
        wanted = AdHocConfig
    try:
        return typing.cast(ComponentConfig, wanted(**args))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(first["msg"], place=f"{place}.args.{where}") from error


def _checked_call(thing: Any, args: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """``args``, if ``thing`` can be called with them. Raises ConfigError."""
    try:
        inspect.signature(thing).bind(**args)
    except TypeError as error:
        reason, hint = f"{_name(thing)} cannot be called with these args: {error}", "write {use: module:Name, args: {...}}"
        raise ConfigError(reason, place=f"{place}.args", hint=hint) from error
    except ValueError:  # callables written in C may have no signature to look at
        pass
    return args


def _no_args(args: Mapping[str, Any], place: str) -> None:
    if args:
        raise ConfigError("args are given, but the object is already built", place=f"{place}.args", hint="give its class instead")


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", None) or type(thing).__qualname__)

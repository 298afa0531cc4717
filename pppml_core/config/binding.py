"""Binds ``RunConfig`` to what is installed: every ``Choice`` becomes the union of the installed configs, told apart by ``use``."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Field, Tag, create_model, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pppml_core.adhoc import AttributeConfig, ObjectConfig, choice_of
from pppml_core.component import OF_ANY_TASK, Choice, Component, ComponentConfig
from pppml_core.config.run_config import OF_ANY_ATTACK, RunConfig
from pppml_core.config.schema import ChoiceSchema, finished
from pppml_core.config.source import ConfigPath
from pppml_core.errors import ConfigError, PluginError, PppmlError
from pppml_core.registry import Registry

#: Begins the union tags that pydantic puts into the places of its errors; no key of a config begins so.
TAG = "<use "


@dataclass(frozen=True)
class Problem:
    """Something wrong with a config: where, and the error that says what and what to do."""

    path: ConfigPath
    error: PppmlError


@dataclass(eq=False)
class Binding:
    """A registry's config classes: ``root``, and one for each component of each kind."""

    registry: Registry
    variants: dict[tuple[str, str], type[ComponentConfig]] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        before: Any = model_validator(mode="before")(lambda cls, data: self.normalized(data)[0] if isinstance(data, Mapping) else data)
        self.root: type[RunConfig] = create_model(
            "RunConfig",
            __base__=RunConfig,
            __module__=RunConfig.__module__,
            __doc__=RunConfig.__doc__,
            __validators__={"_shorthand": before},
            **self._fields(RunConfig),
        )

    def _fields(self, config: type[BaseModel]) -> dict[str, Any]:
        """The fields of a config class that are choices, rebound."""
        out: dict[str, Any] = {}
        for name, info in config.model_fields.items():
            if choice := choice_of(info):
                out[name] = (Annotated[self._rebound(info.annotation, choice), choice], self._default(info, choice))
        return out

    def _default(self, info: FieldInfo, choice: Choice) -> Any:
        extra: dict[str, Any] = {"description": info.description}
        if info.default is not PydanticUndefined:
            extra |= {"default": info.default, "validate_default": info.validate_default}
        elif info.default_factory is not None:
            extra |= {"default_factory": info.default_factory}
        elif choice.default is not None and any(found.name == choice.default for found in self.registry.components(choice.kind)):
            extra |= {"default": {"use": choice.default}, "validate_default": True}
        return Field(**extra)

    def _rebound(self, annotation: Any, choice: Choice) -> Any:
        """``annotation`` with ``ComponentConfig`` replaced by the union of the kind's configs."""
        if isinstance(annotation, type) and issubclass(annotation, ComponentConfig):
            return self._union(choice)
        origin, args = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self._rebound(args[0], choice)
        if origin in (Union, UnionType):
            return Union[tuple(self._rebound(arg, choice) for arg in args)]  # noqa: UP007 - a union of computed members
        if origin in (list, tuple):
            return origin[tuple(arg if arg is Ellipsis else self._rebound(arg, choice) for arg in args)]
        return annotation

    def _union(self, choice: Choice) -> Any:
        kind = choice.kind
        if kind in self._open:
            raise PluginError(f"the configs of {' and '.join(self._open)} choose among each other", hint="a nested choice must end")
        self._open.append(kind)
        members = [
            Annotated[self._variant(kind, component), Tag(f"{TAG}{component.name}>")] for component in self.registry.components(kind)
        ]
        self._open.remove(kind)
        members += [
            Annotated[_of_kind(kind, AttributeConfig), Tag(f"{TAG}module:attribute>")],
            Annotated[_of_kind(kind, ObjectConfig), Tag(f"{TAG}object>")],
        ]
        union: Any = Union[tuple(members)]  # noqa: UP007 - a union of computed members
        names = tuple(component.name for component in self.registry.components(kind))
        return Annotated[union, Discriminator(_tag), ChoiceSchema(kind, names, choice.default)]

    def _variant(self, kind: str, component: Component) -> type[ComponentConfig]:
        """The component's config with ``use: <its name>``."""
        if (kind, component.name) not in self.variants:
            self.variants[kind, component.name] = create_model(
                component.config.__name__,
                __base__=component.config,
                __module__=component.config.__module__,
                __doc__=component.config.__doc__ if component.config.__doc__ != ComponentConfig.__doc__ else component.summary,
                **{
                    "use": (Literal[component.name], Field(description=component.summary)),
                    **_common(kind, component.config),
                    **self._fields(component.config),
                },
            )
        return self.variants[kind, component.name]

    def normalized(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Shorthands written out (``model: unet``, ``task.pool``), defaults of choices filled in, and every unavailable name."""
        out, problems = dict(data), list[Problem]()
        task = out.get("task")
        if isinstance(task, Mapping):
            out["task"] = {key: value for key, value in task.items() if key not in OF_ANY_TASK}
            out |= {key: value for key, value in task.items() if key in OF_ANY_TASK}
        return self._section(self.root, out, (), problems), problems

    def _section(self, config: type[BaseModel], data: dict[str, Any], path: ConfigPath, problems: list[Problem]) -> dict[str, Any]:
        for name, info in config.model_fields.items():
            choice = choice_of(info)
            if choice is None:
                continue
            if name not in data and choice.default is not None:
                data[name] = {"use": choice.default}
            elif name not in data and info.default is not PydanticUndefined:
                data[name] = info.default
            # Of a list, anything but a list is left for pydantic to refuse.
            if name in data and (isinstance(data[name], list | tuple) or get_origin(info.annotation) not in (list, tuple)):
                data[name] = self._chosen(choice, data[name], (*path, name), problems)
        return data

    def _chosen(self, choice: Choice, value: Any, path: ConfigPath, problems: list[Problem]) -> Any:
        if isinstance(value, list | tuple):
            return [self._chosen(choice, item, (*path, index), problems) for index, item in enumerate(value)]
        if isinstance(value, str):
            value = {"use": value}
        if not isinstance(value, Mapping):
            return value
        data: dict[str, Any] = {**({"use": choice.default} if choice.default else {}), **value}
        use = data.get("use")
        if not isinstance(use, str):
            names = ", ".join(component.name for component in self.registry.components(choice.kind)) or "none is installed"
            reason = "`use` is missing" if "use" not in data else f"`use` must be a name, not {use!r}"
            problems.append(Problem(path, ConfigError(reason, hint=f"which {choice.kind}? use: one of {names}")))
        elif ":" not in use and use != "object":
            try:
                self.registry.get(choice.kind, use)
            except PppmlError as error:
                problems.append(Problem(path, error))
            else:
                self._section(self.variants[choice.kind, use], data, path, problems)
        return data


def _common(kind: str, config: type[ComponentConfig]) -> dict[str, Any]:
    """What every component of the kind takes, unless it has a setting of that name itself."""
    return {name: form for name, form in OF_ANY_ATTACK.items() if kind == "attack" and name not in config.model_fields}


def _of_kind(kind: str, config: type[ComponentConfig]) -> type[ComponentConfig]:
    """A config without a plugin, with what every component of the kind takes."""
    common = _common(kind, config)
    if not common:
        return config
    made: type[ComponentConfig] = create_model(
        f"{kind.capitalize()}{config.__name__}", __base__=config, __module__=config.__module__, __doc__=config.__doc__, **common
    )
    return made


def _tag(value: Any) -> str | None:
    use = value.get("use") if isinstance(value, Mapping) else getattr(value, "use", None)
    if not isinstance(use, str):
        return None
    return f"{TAG}module:attribute>" if ":" in use else f"{TAG}{use}>"


_bindings: weakref.WeakKeyDictionary[Registry, Binding] = weakref.WeakKeyDictionary()


def binding_of(registry: Registry) -> Binding:
    """The registry's binding, made once."""
    if registry not in _bindings:
        _bindings[registry] = Binding(registry)
    return _bindings[registry]


def json_schema(registry: Registry) -> dict[str, Any]:
    """JSON Schema 2020-12 of a config file, stamped with the installed versions (``x-pppml-versions``)."""
    schema = finished(bind(registry).model_json_schema())
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pppml run",
        "x-pppml-versions": registry.versions(),
    }
    return {**head, **{key: value for key, value in schema.items() if key != "title"}}


def bind(registry: Registry) -> type[RunConfig]:
    """``RunConfig`` with every component section bound to what this registry holds. The same class at each call.

    Its instances accept a name for a map (``model: unet``), ``task: {pool: true}``, and a missing choice that has a default; errors in
    words, with lines, come from :func:`pppml_core.config.resolve`.
    """
    return binding_of(registry).root

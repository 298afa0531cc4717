"""From a file, a text or a map to a bound ``RunConfig``: the one door, and the one place where a config's errors are raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pppml_core.adhoc import ObjectConfig, choice_of
from pppml_core.config.binding import Problem, binding_of
from pppml_core.config.overrides import extended, overridden
from pppml_core.config.run_config import RunConfig
from pppml_core.config.source import Document, load_yaml
from pppml_core.config.wording import problems_of
from pppml_core.errors import ConfigError, PluginError, PppmlError
from pppml_core.registry import Registry


class InvalidConfig(ConfigError):
    """Several problems at once; ``problems`` lists each with its own place and hint."""

    def __init__(self, problems: Sequence[PppmlError], *, place: str) -> None:
        self.problems = tuple(problems)
        super().__init__(_listed(problems), place=place)


def _listed(problems: Sequence[PppmlError]) -> str:
    return f"{len(problems)} problems:" + "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))


def resolve(
    source: str | Path | Mapping[str, Any] | Document,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
    objects: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Reads, extends, overrides, checks and binds a config.

    Args:
        source: a YAML file, a YAML text, a map, or a document.
        overrides: ``a.b=c`` as after ``--set``.
        registry: what is installed; default: discovered now.
        objects: live objects that ``use: object`` may mean, by key; None: not checked here.

    Raises ConfigError (InvalidConfig where there are several problems, all of them listed) with ``file:line``, the path in the config, the
    reason and a hint; PluginError where the only problems are plugins that are missing or broken.

    """
    registry = registry if registry is not None else Registry.discover()
    binding = binding_of(registry)
    document = overridden(extended(_document(source), registry.recipes), overrides)
    data, problems = binding.normalized(document.data)
    config: RunConfig | None = None
    try:
        config = binding.root.model_validate(data)
    except ValidationError as error:
        for found in problems_of(error, binding, data):
            # A section whose component is not available has been reported already.
            if not any(found.path[: len(known.path)] == known.path for known in problems):
                problems.append(found)
    if config is not None and not problems and objects is not None:
        problems = _missing_objects(config, objects)
    if problems or config is None:
        raise _raised(problems, document)
    return config


def _document(source: str | Path | Mapping[str, Any] | Document) -> Document:
    if isinstance(source, Document):
        return source
    return Document(dict(source)) if isinstance(source, Mapping) else load_yaml(source)


def _missing_objects(config: Any, objects: Mapping[str, Any]) -> list[Problem]:
    out = []
    for name, info in type(config).model_fields.items():
        choice, value = choice_of(info), getattr(config, name)
        for item in value if isinstance(value, list) else [value]:
            key = item.key or (choice.kind if choice else name) if isinstance(item, ObjectConfig) else None
            if key is not None and key not in objects:
                hint = f'give it through the API: objects={{"{key}": ...}}'
                out.append(Problem((name,), ConfigError("a Python object is needed that is not here", hint=hint)))
    return out


def _raised(problems: Sequence[Problem], document: Document) -> PppmlError:
    placed = [_placed(problem, document) for problem in sorted(problems, key=lambda problem: _order(problem, document))]
    if len(placed) == 1:
        return placed[0]
    if all(isinstance(error, PluginError) for error in placed):
        return PluginError(_listed(placed), place=document.name)
    return InvalidConfig(placed, place=document.name)


def _placed(problem: Problem, document: Document) -> PppmlError:
    """The problem's error, of the same class, with its place in the file."""
    kind = type(problem.error) if isinstance(problem.error, ConfigError | PluginError) else ConfigError
    return kind(problem.error.message, place=document.place(problem.path), hint=problem.error.hint)


def _order(problem: Problem, document: Document) -> tuple[str, int, str]:
    file, _, line = document.place(problem.path).partition(": ")[0].rpartition(":")
    return file, int(line) if line.isdecimal() else 0, str(problem.path)

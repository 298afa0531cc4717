"""pydantic's errors in plain words: what is wrong, with what value, and what would be right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pppml_core.adhoc import choice_of
from pppml_core.component import OF_ANY_TASK
from pppml_core.config.binding import Binding, Problem
from pppml_core.config.source import ConfigPath
from pppml_core.errors import ConfigError, nearest

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a map",
    "model": "a map of settings",
    "mapping": "a map",
    "path": "a path",
    "none": "null",
}
_BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
_SIGNS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def problems_of(error: ValidationError, binding: Binding, data: Mapping[str, Any]) -> list[Problem]:
    """One problem for each place; where a union gave several errors, their demands are joined by "or"."""
    at: dict[ConfigPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        at.setdefault(_path(detail, data), []).append(detail)
    # Of a union's errors, those at a deeper place come from the member that was meant.
    inner = [path for path in at if not any(other != path and other[: len(path)] == path for other in at) or _own(at[path])]
    return [Problem(path, _worded(path, at[path], binding, data)) for path in inner]


def _own(details: Sequence[ErrorDetails]) -> bool:
    """Whether the errors speak of the section itself rather than of a union's other members."""
    return all(detail["type"] in ("value_error", "assertion_error", "missing", "extra_forbidden") for detail in details)


def _path(detail: ErrorDetails, data: Mapping[str, Any]) -> ConfigPath:
    """The place in the data: pydantic's, without the names of union members."""
    out: list[str | int] = []
    here: Any = data
    for index, part in enumerate(detail["loc"]):
        known = part in here if isinstance(here, Mapping) else isinstance(here, list | tuple) and part in range(len(here))
        if known:
            here = here[part]
        # Any other part is the name of a union's member, or an entry that a list is too short for: then the list is at fault.
        if known or (index == len(detail["loc"]) - 1 and detail["type"] == "missing" and not _too_short(detail)):
            out.append(part)
    return tuple(out)


def _too_short(detail: ErrorDetails) -> bool:
    """Whether this is a list without one of its entries, as pydantic says it of lists of a fixed length: once for each absent entry."""
    return detail["type"] == "missing" and isinstance(detail["loc"][-1], int)


def _worded(path: ConfigPath, details: Sequence[ErrorDetails], binding: Binding, data: Mapping[str, Any]) -> ConfigError:
    owner, info, field = _field(path, binding, data)
    first = details[0]
    about = _about(field, info, binding)
    if first["type"] == "missing" and not _too_short(first):
        return ConfigError("is missing", hint=about)
    if first["type"] == "extra_forbidden":
        known = sorted(owner.model_fields) + (list(OF_ANY_TASK) if path[:-1] == ("task",) else []) if owner else []
        close = nearest(str(path[-1]), known)
        return ConfigError(f"unknown key {path[-1]!r}", hint=f"did you mean {close!r}?" if close else f"known here: {', '.join(known)}")
    if first["type"] in ("value_error", "assertion_error"):
        component = _class_below(info, binding, first["input"]) if info is not None and choice_of(info) else None
        if component is not None:
            about = f"settings of `{first['input']['use']}`: {', '.join(component.model_fields)}"
        return ConfigError(first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, "), hint=about)
    last = {detail["loc"][:-1]: detail for detail in details if _too_short(detail)}
    demands = list(dict.fromkeys(_demand(d) for d in details if not _too_short(d) or last[d["loc"][:-1]] is d))
    value = first["input"]
    if isinstance(value, str) and (close := nearest(value, _literals(details))):
        about = f"did you mean {close!r}? {about}"
    if demands == ["a list"] and isinstance(value, str):
        about = f"write [{value}]. {about}"
    return ConfigError(f"must be {' or '.join(demands)}, not {_shown(value)}", hint=about)


def _about(name: str, info: FieldInfo | None, binding: Binding) -> str:
    """What an entry is for: its description, the names it may have, the settings it holds, or its default."""
    if info is None:
        return "`pppml schema` lists every setting"
    if info.description:
        return f"{name}: {info.description}"
    if choice := choice_of(info):
        names = ", ".join(found.name for found in binding.registry.components(choice.kind))
        return f"{name}: one of {names}" if names else f"no {choice.kind} is installed"
    if section := next(_models(info.annotation), None):
        return f"settings of `{name}`: {', '.join(section.model_fields)}"
    return f"{name}: required" if info.is_required() else f"{name}: {info.get_default(call_default_factory=True)!r} by default"


def _shown(value: Any) -> str:
    """A value as the file has it, shortened."""
    if isinstance(value, Mapping | list | tuple):
        return "a map" if isinstance(value, Mapping) else f"a list of {len(value)}"
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _demand(detail: ErrorDetails) -> str:
    """What would be right, to follow "must be"."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        return f"{_SIGNS[_BOUNDS[kind]]} {context[_BOUNDS[kind]]:g}"
    if kind == "literal_error":
        return f"one of {context['expected']}" if "," in context["expected"] or " or " in context["expected"] else str(context["expected"])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return "a name or a map with `use`"
    if kind == "finite_number":
        return "finite"
    if kind == "int_from_float":
        return "a whole number"
    if kind == "string_pattern_mismatch":
        return f"a text that matches {context['pattern']}"
    if _too_short(detail):
        return f"a list of {int(detail['loc'][-1]) + 1}"
    if kind in ("too_long", "too_short"):
        return f"a list of {'at most' if kind == 'too_long' else 'at least'} {context.get('max_length', context.get('min_length'))}"
    if kind in ("string_too_long", "string_too_short"):
        return f"a text of {'at most' if 'long' in kind else 'at least'} {context.get('max_length', context.get('min_length'))} characters"
    stem = kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_attributes")
    return _KINDS.get(stem, f"otherwise ({detail['msg'][:1].lower()}{detail['msg'][1:]})")


def _literals(details: Sequence[ErrorDetails]) -> list[str]:
    found = " ".join(detail["ctx"]["expected"] for detail in details if detail["type"] == "literal_error")
    return [part for part in found.replace(" or ", ",").replace(" ", "").replace("'", "").split(",") if part]


def _field(path: ConfigPath, binding: Binding, data: Mapping[str, Any]) -> tuple[type[BaseModel] | None, FieldInfo | None, str]:
    """The config class that holds the entry, and the entry's field and name; of an entry within a map or list, those of the whole."""
    owner: type[BaseModel] | None = binding.root
    info, name = None, ""
    here: Any = data
    for index, part in enumerate(path):
        here = here[part] if isinstance(part, int) or (isinstance(here, Mapping) and part in here) else None
        if isinstance(part, str) and owner is not None:
            info, name = owner.model_fields.get(part), part
        if index < len(path) - 1:
            owner = _class_below(info, binding, here)
    return owner, info, name


def _class_below(info: FieldInfo | None, binding: Binding, value: Any) -> type[BaseModel] | None:
    if info is None:
        return None
    if choice := choice_of(info):
        return binding.variants.get((choice.kind, value["use"])) if isinstance(value, Mapping) and "use" in value else None
    return next(_models(info.annotation), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)

"""How a choice among components looks in JSON Schema, so that an editor offers names, checks ranges and shows descriptions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

ATTRIBUTE_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"
#: What every task takes (``component.OF_ANY_TASK``).
_OF_ANY_TASK = {
    "pool": {"type": "boolean", "default": False, "description": "all sites' data at one place: centralized training"},
    "leave_out": {"type": "array", "items": {"type": "string"}, "default": [], "description": "sites (slugs) that take no part"},
}


_MARK = "x-pppml-choice"


@dataclass(frozen=True)
class ChoiceSchema:
    """Annotates a bound choice, so that :func:`finished` finds it in the schema pydantic makes."""

    kind: str
    names: tuple[str, ...]
    default: str | None = None

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {_MARK: self, "anyOf": handler(core)["oneOf"]}


def finished(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every choice written out: a name, a ``module:attribute``, or a map of one component's settings."""
    definitions = schema.get("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        out = {key: walk(item) for key, item in value.items() if key != _MARK}
        mark = value.get(_MARK)
        if isinstance(mark, ChoiceSchema):
            out["anyOf"] = [*_strings(mark), *(_member(mark, member) for member in value["anyOf"])]
        return out

    def _member(choice: ChoiceSchema, member: dict[str, Any]) -> dict[str, Any]:
        key = member["$ref"].rpartition("/")[2]
        name = _use(definitions[key]).get("const")
        if choice.kind != "task" and name != choice.default:
            return member
        # Only a task takes these, and only a default may leave out `use`: a copy, since a definition may serve elsewhere too.
        own = copy.deepcopy(definitions[key])
        if choice.kind == "task":
            own["properties"] |= _OF_ANY_TASK
        if name is not None and name == choice.default:
            own["required"] = [required for required in own["required"] if required != "use"]
        walked: dict[str, Any] = walk(own)
        return walked

    result: dict[str, Any] = walk(schema)
    return result


def _strings(choice: ChoiceSchema) -> list[dict[str, Any]]:
    attribute = {"type": "string", "pattern": ATTRIBUTE_PATTERN, "description": "module:attribute to import"}
    names = {"type": "string", "enum": list(choice.names), "description": f"an installed {choice.kind}, by name"}
    return [names, attribute] if choice.names else [attribute]


def _use(definition: dict[str, Any]) -> dict[str, Any]:
    use: dict[str, Any] = definition.get("properties", {}).get("use", {})
    return use

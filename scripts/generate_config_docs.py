"""Writes docs/config.md from RunConfig and the built-in components: ``python scripts/generate_config_docs.py [--check]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from pppml_core.adhoc import choice_of
from pppml_core.component import Choice, Component
from pppml_core.config import RunConfig
from pppml_core.config.run_config import OF_ANY_ATTACK
from pppml_core.registry import Registry

TARGET = Path(__file__).resolve().parents[1] / "docs" / "config.md"

HEAD = """# Configuration

Written by `scripts/generate_config_docs.py`; do not edit. A config is a YAML file. Only `task` is required.

```yaml
task: tiny                      # a name, or a map: {use: tiny, sites: 5}; add `pool: true` for centralized training
run: {rounds: 20, seed: 7}
aggregator: plain
```

- A component (`task`, `model`, `personalization`, `privacy`, `aggregator`, `engine`, each of `attacks` and `reporters`) is a name,
  a map `{use: NAME, setting: value}`, or `"module:attribute"` for code of your own: `model: "net:MyNet"`, or
  `{use: "net:MyNet", args: {width: 8}}`.
- `pppml run config.yaml --set run.rounds=5 --set model=unet --set model.channels=[8,16]` overrides entries; `attacks.0.rounds=[1]`
  reaches into lists; a key with dots is quoted: `encoding.range."conv.*"=0.1`.
- `extends: base.yaml`, `extends: distribution/recipe` or a list of them: the config is laid over these, maps entry by entry, lists and
  values replaced. A component of another name replaces the whole section.
- Every error names file, line and entry, and all of them are shown at once. A key given twice is an error. Scalars follow YAML 1.2:
  `1e-3` is a number, `no` is a text.
- `pppml plugins` lists the components that are installed; `pppml schema -o pppml.schema.json` writes a JSON Schema with all of their
  settings, for editors. Each plugin's README documents its own settings; below are those of the core.
- A run's folder holds `config.resolved.yaml`, every default written out. Run it again, and it is the same run.
"""


def page() -> str:
    """The whole document."""
    registry = Registry.only()
    parts = [HEAD]
    for name, info in RunConfig.model_fields.items():
        choice = choice_of(info)
        if choice is not None:
            parts += _choice(name, info, choice, registry)
        elif section := next(_models(info.annotation), None):
            parts.append(f"## `{name}`\n\n{_first_line(section)}\n\n{_table(section, f'{name}.')}")
        else:
            parts.append(f"## `{name}`\n\n{_sentence(info.description or '')} Default: {_value(info)}.\n")
    return "\n".join(parts)


def _choice(name: str, info: FieldInfo, choice: Choice, registry: Registry) -> Iterator[str]:
    default = "Required" if name == "task" else f"Default: `{choice.default}`" if choice.default else f"Default: {_value(info)}"
    note = " (the task's own)" if name == "model" else ""
    yield f"## `{name}`\n\nKind `{choice.kind}`. {default}{note}.\n"
    if choice.kind == "attack":
        yield f"Every attack takes, beside its own settings:\n\n{_table(create_model('AnyAttack', **OF_ANY_ATTACK), '')}"
    built_in = registry.components(choice.kind)
    if not built_in:
        yield "None is built in.\n"
    for component in built_in:
        yield _component(component)


def _component(component: Component) -> str:
    cites = f" After {'; '.join(component.cites)}." if component.cites else ""
    text = f"### `{component.name}`\n\n{_sentence(component.summary)}{cites}\n"
    return f"{text}\n{_table(component.config, '')}" if component.config.model_fields else text


def _table(config: type[BaseModel], prefix: str) -> str:
    rows = "\n".join(f"| `{key}` | {_cell(kind)} | {default} | {_cell(text)} |" for key, kind, default, text in _rows(config, prefix))
    return f"| key | value | default | |\n|---|---|---|---|\n{rows}\n"


def _rows(config: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    schema = config.model_json_schema()
    for name, info in config.model_fields.items():
        words = _words(schema["properties"][name], schema.get("$defs", {}))
        inner = next(_models(info.annotation), None)
        text = info.description or ("" if inner is None else _first_line(inner))
        # A section that is always there is told by its entries.
        if inner is None or words != "map":
            yield f"{prefix}{name}", words, _value(info), text
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}[]." if words.startswith("list") else f"{prefix}{name}.")


def _words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON Schema in words."""
    if "$ref" in schema:
        return _words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_words(part, definitions) for part in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        length = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"list of {f'{length} of ' if length else ''}{_words(items, definitions)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"map to {_words(values, definitions)}" if isinstance(values, dict) else "map"
    words = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text", "null": "null"}
    signs = {"minimum": ">= ", "exclusiveMinimum": "> ", "maximum": "<= ", "exclusiveMaximum": "< "}
    bounds = [f"{sign}{schema[key]:g}" if schema[key] < 1e6 else f"{sign}2^63 - 1" for key, sign in signs.items() if key in schema]
    return " ".join([words.get(kind or "", kind or "any"), ", ".join(bounds)]).strip()


def _value(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return f"`{plain if isinstance(plain, str) and plain else json.dumps(plain, ensure_ascii=False)}`"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _first_line(config: type[BaseModel]) -> str:
    return " ".join((config.__doc__ or "").partition("\n\n")[0].split())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Writes the page, or with ``--check`` says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is out of date")
    if parser.parse_args().check:
        sys.exit(
            0 if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == page() else f"{TARGET.name} is out of date: run {__file__}"
        )
    TARGET.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

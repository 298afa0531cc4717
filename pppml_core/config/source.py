"""YAML in, plain data and line numbers out; plain data in, YAML out.

The reading is PyYAML's up to the node tree; turning nodes into data is done here, because the line of every entry is wanted, a
duplicate key must be an error, and nothing but maps, lists and scalars may come out. Scalars follow YAML 1.2's core rules: ``1e-3`` is a
number, ``no`` is a text, a date is a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pppml_core.component import OF_ANY_TASK
from pppml_core.errors import ConfigError

#: Where in a config: keys and list indices from the top.
ConfigPath = tuple[str | int, ...]

_MAX_CHARACTERS = 4_000_000
_MAX_VALUES = 100_000
_MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
#: What an unquoted scalar is, in the order tried; anything else is a text.
_RULES: list[tuple[str, re.Pattern[str]]] = [
    (f"{_TAG}null", re.compile(r"^(~|null|Null|NULL|)$")),
    (f"{_TAG}bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$")),
    (f"{_TAG}int", re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")),
    (f"{_TAG}float", re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")),
    (f"{_TAG}merge", re.compile(r"^<<$")),
]


@dataclass(frozen=True)
class Document:
    """Plain data and, for each entry, where it was written (``file:line``)."""

    data: dict[str, Any]
    places: Mapping[ConfigPath, str] = field(default_factory=dict)
    name: str = "config"
    #: the folder that relative paths in ``extends`` start from.
    folder: Path = field(default_factory=Path)

    def place(self, path: ConfigPath) -> str:
        """``file:line: a.b[0]``, with the line of the nearest entry that has one."""
        # `task.pool` is kept as `pool`; its line is where it was written.
        written = ("task", *path) if path[:1] and path[0] in OF_ANY_TASK and ("task", path[0]) in self.places else path
        text = dotted(written)
        for length in range(len(written), -1, -1):
            if found := self.places.get(written[:length]):
                return f"{found}: {text}" if text else found
        return text or self.name


def dotted(path: ConfigPath) -> str:
    """A path as people write it: ``attacks[0].rounds``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def load_yaml(source: str | Path) -> Document:
    """Reads a file, or a text of YAML (told by a line break, ``: `` or a closing ``:``).

    Raises ConfigError for everything else than one map at the top: unreadable files, YAML errors, duplicate keys, tags, alias bombs.
    """
    if isinstance(source, str) and ("\n" in source or ": " in source or source.rstrip().endswith(":")):
        return parse(source, "text", Path())
    path = Path(source)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        near = sorted(file.name for file in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"in that folder there are: {', '.join(near[:8])}" if near else "give the path of a YAML file"
        raise ConfigError("there is no such file", place=str(path), hint=hint) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=str(path), hint="give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not a text in UTF-8", place=str(path), hint="give the path of a YAML file") from error
    return parse(text, str(path), path.parent)


def parse(text: str, name: str, folder: Path) -> Document:
    """The document of a YAML text; ``name`` stands before the line numbers."""
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"is longer than {_MAX_CHARACTERS:,} characters", place=name, hint="this is not a config")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is None:
            return Document({}, {(): f"{name}:1"}, name, folder)
        if not isinstance(node, yaml.MappingNode):
            place = f"{name}:{node.start_mark.line + 1}"
            raise ConfigError("must be a map of sections", place=place, hint="begin with `task: ...`")
        reader = _Reader(name)
        data = reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        context = f" ({error.context})" if error.context else ""
        hint = "check the indentation (spaces, no tabs), colons and quotes of this line and the one above"
        raise ConfigError(f"is not valid YAML: {error.problem}{context}", place=place, hint=hint) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {' '.join(str(error).split())}", place=name, hint="remove control characters") from error
    except RecursionError as error:
        raise ConfigError("is nested too deeply", place=name, hint=f"at most {_MAX_DEPTH} levels are read") from error
    return Document(data, reader.places, name, folder)


class _Loader(yaml.SafeLoader):
    """Only its composer is used."""

    yaml_implicit_resolvers = {None: _RULES}


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that the loader would read as something else."""

    yaml_implicit_resolvers = {None: _RULES}

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out: a reader of the file should not have to look up."""
        return True


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that :func:`load_yaml` reads back to equal data."""
    text = str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
    # PyYAML writes these line separators as they are, and reads them as line breaks.
    if any(separator in text for separator in "\x85\u2028\u2029"):
        text = str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=120))
    return text


def scalar(text: str) -> Any:
    """The value of one YAML text, as ``--set a.b=TEXT`` reads it. Raises ConfigError."""
    return parse(f"value: {text}" if text.strip() else "value:", "value", Path()).data["value"]


class _Reader:
    """Nodes to data. Counts what it makes: an alias is read again at each use, and ten lines of aliases could make a billion values."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.places: dict[ConfigPath, str] = {}

    def value(self, node: yaml.Node, path: ConfigPath) -> Any:
        self.count += 1
        place = f"{self.name}:{node.start_mark.line + 1}"
        if self.count > _MAX_VALUES:
            raise ConfigError(f"has more than {_MAX_VALUES:,} values", place=place, hint="aliases (*name) repeat what they stand for")
        if len(path) > _MAX_DEPTH:
            raise ConfigError("is nested too deeply", place=place, hint=f"at most {_MAX_DEPTH} levels; does an alias contain itself?")
        self.places.setdefault(path, place)
        if isinstance(node, yaml.MappingNode):
            self._tag(node, "map", place)
            return self._map(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._tag(node, "seq", place)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, place)

    def _map(self, node: yaml.MappingNode, path: ConfigPath) -> dict[str, Any]:
        out: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            place = f"{self.name}:{line}"
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError("a key must be a text", place=place, hint="quote texts that begin with [ or {")
            if key.tag == f"{_TAG}merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if key.value in lines:
                where = dotted((*path, key.value))
                raise ConfigError(f"the key {where!r} is given twice, in lines {lines[key.value]} and {line}", place=place, hint="keep one")
            lines[key.value] = line
            # A merged map comes later, and what it repeats stays where it was written first.
            self.places.setdefault((*path, key.value), place)
            out[key.value] = self.value(value, (*path, key.value))
        for base in merged:
            if not isinstance(base, yaml.MappingNode):
                raise ConfigError(
                    "`<<` must be followed by a map", place=f"{self.name}:{base.start_mark.line + 1}", hint="write `<<: *name`"
                )
            for key, value in self._map(base, path).items():
                out.setdefault(key, value)
        return out

    def _scalar(self, node: yaml.Node, place: str) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "merge"):
            return text
        if not any(tag == node.tag and rule.match(text) for tag, rule in _RULES):
            raise ConfigError(
                f"{text!r} with the tag {node.tag!r} is not read", place=place, hint="only maps, lists, texts and numbers are"
            )
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if len(text) > 400:
            raise ConfigError("this number has more than 400 characters", place=place, hint="quote it if it is a text")
        if kind == "int":
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def _tag(self, node: yaml.Node, expected: str, place: str) -> None:
        if node.tag != f"{_TAG}{expected}":
            raise ConfigError(f"the tag {node.tag!r} is not read here", place=place, hint="only maps, lists, texts and numbers are")

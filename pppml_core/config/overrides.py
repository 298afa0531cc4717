"""``--set a.b=c`` and ``extends``: how one set of settings is laid over another."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pppml_core.config.source import ConfigPath, Document, dotted, load_yaml, parse, scalar
from pppml_core.errors import ConfigError, nearest

#: Sections whose `use` is a setting among others; everywhere else it names a component, whose settings go when it goes.
_STATIC = frozenset({"run", "training", "encoding"})
_TOKEN = re.compile(r"""\.?(?:"([^"]+)"|'([^']+)'|\[(\d+)\]|([^.\[\]"']+))""")


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``data`` with each ``path=value`` applied in turn.

    The value is YAML; the path is keys and list indices, ``attacks.0.rounds`` or ``attacks[0].rounds``, a key with dots in quotes. Maps on
    the way are made; a name (``model: unet``) that gets a setting becomes ``{use: unet, ...}``; another ``use`` drops the old one's
    settings. Raises ConfigError.
    """
    return overridden(Document(dict(data)), overrides).data


def overridden(document: Document, overrides: Sequence[str]) -> Document:
    """As :func:`apply_overrides`; the places of what was set become ``--set ...``."""
    data, places = copy.deepcopy(document.data), dict(document.places)
    for override in overrides:
        path, value = _parsed(override)
        changed = _set(data, path, value, override)
        for old in [old for old in places if old[: len(changed)] == changed]:
            del places[old]
        places[path] = f"--set {override}"
    return replace(document, data=data, places=places)


def _parsed(override: str) -> tuple[ConfigPath, Any]:
    place = f"--set {override}"
    left, equals, right = override.partition("=")
    hint = "write PATH=VALUE, such as --set run.rounds=20"
    if not equals or not left.strip():
        raise ConfigError("there is no path before '='" if equals else "there is no '='", place=place, hint=hint)
    path: list[str | int] = []
    position, left = 0, left.strip()
    while position < len(left):
        found = _TOKEN.match(left, position)
        if not found or (position > 0) != (found[0].startswith(".") or found[0].startswith("[")):
            raise ConfigError(f"the path {left!r} cannot be read at {left[position:]!r}", place=place, hint=hint)
        quoted = found[1] or found[2]
        token = quoted or found[3] or found[4].strip()
        path.append(int(token) if not quoted and token.isdecimal() else token)
        position = found.end()
    if isinstance(path[0], int):
        raise ConfigError("a path begins with a section", place=place, hint=hint)
    try:
        return tuple(path), scalar(right)
    except ConfigError as error:
        raise ConfigError(error.message, place=place, hint="quote values with special characters: --set 'a.b=\"x: y\"'") from error


def _set(data: dict[str, Any], path: ConfigPath, value: Any, override: str) -> ConfigPath:
    """Sets in place; returns the path whose former contents are gone."""
    here: Any = data
    for depth, (part, after) in enumerate(zip(path, [*path[1:], None], strict=True)):
        place = f"--set {override}"
        if isinstance(here, list):
            if not isinstance(part, int) or part > len(here):
                reason = f"{dotted(path[:depth])} is a list of {len(here)}, which has no entry {part!r}"
                raise ConfigError(reason, place=place, hint=f"use an index from 0 to {len(here)}")
            if part == len(here):
                here.append(None)
            key: Any = part
        else:
            key = str(part)
        if after is None:
            if key == "use" and isinstance(here, dict) and path[0] not in _STATIC and here.get("use") != value:
                here.clear()
                here["use"] = value
                return path[:-1]
            here[key] = value
            return path
        below = here.get(key) if isinstance(here, dict) else here[key]
        if below is None:
            below = [] if isinstance(after, int) else {}
        elif isinstance(below, str):
            below = {} if path[0] in _STATIC else {"use": below}
        elif not isinstance(below, dict | list):
            where = dotted(path[: depth + 1])
            raise ConfigError(f"{where} is {below!r}, which has no settings", place=place, hint=f"set {where} itself")
        here[key] = below
        here = below
    raise AssertionError("a path has at least one part")


def merged(base: Document, top: Document) -> Document:
    """``top`` laid over ``base``: maps entry by entry, lists and values replaced, a component of another name replaced as a whole."""
    data: dict[str, Any] = copy.deepcopy(base.data)
    places = dict(base.places)

    def lay(under: dict[str, Any], over: Mapping[str, Any], path: ConfigPath) -> None:
        for key, value in over.items():
            here = (*path, key)
            below = under.get(key)
            if isinstance(value, dict) and isinstance(below, str) and here[0] not in _STATIC:
                below = under[key] = {"use": below}
            if isinstance(value, dict) and isinstance(below, dict) and (here[0] in _STATIC or _same_use(below, value)):
                lay(below, value, here)
            else:
                for old in [old for old in places if old[: len(here)] == here]:
                    del places[old]
                under[key] = copy.deepcopy(value)

    lay(data, top.data, ())
    return replace(top, data=data, places={**places, **top.places})


def _same_use(below: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    return bool(over.get("use", below.get("use")) == below.get("use"))


def extended(document: Document, recipes: Callable[[], Mapping[str, Path]]) -> Document:
    """``document`` laid over everything it ``extends``, which is gone afterwards: the result stands for itself.

    Each entry is a path to a YAML file (relative to the file that names it) or a recipe ``distribution/name``. Raises ConfigError on an
    unknown recipe, a missing file or a cycle.
    """
    return _extended(document, recipes, ())


def _extended(document: Document, recipes: Callable[[], Mapping[str, Path]], stack: tuple[str, ...]) -> Document:
    wanted = document.data.get("extends")
    names = [wanted] if isinstance(wanted, str) else [] if wanted is None else wanted
    place = document.place(("extends",))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError("must be a recipe, a path, or a list of them", place=place, hint="extends: base.yaml")
    own = replace(document, data={key: value for key, value in document.data.items() if key != "extends"})
    base = Document({})
    for name in names:
        found, identity = _opened(name, document, recipes, place)
        if identity in stack:
            chain = " -> ".join(Path(step).name for step in (*stack[stack.index(identity) :], identity))
            raise ConfigError(f"extends itself: {chain}", place=place, hint="remove one of these `extends`")
        base = merged(base, _extended(found, recipes, (*stack, identity)))
    return merged(base, own)


def _opened(name: str, document: Document, recipes: Callable[[], Mapping[str, Path]], place: str) -> tuple[Document, str]:
    if name.endswith((".yaml", ".yml")) or name.startswith((".", "/", "~")):
        path = Path(name).expanduser()
        path = path if path.is_absolute() else document.folder / path
        if not path.is_file():
            raise ConfigError(f"extends {name!r}, but there is no file {path}", place=place, hint="paths start at the folder of this file")
        return load_yaml(path), str(path.resolve())
    known = recipes()
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close!r}?" if close else f"installed recipes: {', '.join(sorted(known)) or 'none'}; a path ends with .yaml"
        raise ConfigError(f"there is no recipe {name!r}", place=place, hint=hint)
    return parse(known[name].read_text(encoding="utf-8"), name, known[name].parent), str(known[name].resolve())

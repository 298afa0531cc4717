"""Live Python objects in a config given as a map: ``{"task": "lung-lesions", "model": MyUNet}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SECTIONS = ("task", "model", "personalization", "privacy", "aggregator", "engine")
_LISTS = ("attacks", "reporters")
_PLAIN = (str, int, float, bool, list, tuple, type(None))


def split_objects(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain data with ``use: object`` where a component section held a class, an instance or a callable, and these objects by key.

    ``{"model": Net}`` and ``{"model": {"use": Net, "args": {...}}}`` are understood, in lists too. The key is the section's name, with
    the index in a list (``reporters.0``).
    """
    plain, objects = dict(data), dict[str, Any]()
    for section in _SECTIONS:
        if section in plain:
            plain[section] = _split(plain[section], section, objects)
    for section in _LISTS:
        if isinstance(plain.get(section), list | tuple):
            plain[section] = [_split(item, f"{section}.{index}", objects) for index, item in enumerate(plain[section])]
    return plain, objects


def _split(value: Any, key: str, objects: dict[str, Any]) -> Any:
    if isinstance(value, Mapping):
        if "use" not in value or isinstance(value["use"], _PLAIN):
            return value
        return {**value, **_split(value["use"], key, objects)}
    if isinstance(value, _PLAIN):
        return value
    objects[key] = value
    named = value if hasattr(value, "__qualname__") else type(value)
    return {"use": "object", "key": key, "about": f"{named.__module__}.{named.__qualname__}"}

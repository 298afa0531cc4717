"""The resolved config as plain data and as a file, and what differs between two."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from pppml_core import __version__
from pppml_core.config.source import ConfigPath, dotted, dump_yaml


class Difference(NamedTuple):
    """One entry that differs; ``str()`` reads ``training.optimizer.lr: 0.01 -> 0.1``."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.before!r} -> {self.after!r}"


def to_plain(config: BaseModel) -> dict[str, Any]:
    """Maps, lists and scalars, every default written out, ``use`` first; ``extends`` is left out, since it has been applied."""
    plain: dict[str, Any] = _ordered(config.model_dump(mode="json"))
    plain.pop("extends", None)
    return plain


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value, key=lambda key: key != "use")}
    return [_ordered(item) for item in value] if isinstance(value, list) else value


def save_resolved(config: BaseModel, path: str | Path) -> None:
    """Writes the config so that reading the file gives an equal one; a crash leaves the old file or the new one."""
    path = Path(path)
    text = f"# The config of this run with every default written out, by pppml-core {__version__}.\n{dump_yaml(to_plain(config))}"
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def diff(before: BaseModel | Mapping[str, Any], after: BaseModel | Mapping[str, Any]) -> list[Difference]:
    """Every entry that is not equal in both, by path; an entry that one of them lacks is None there."""
    first, second = (to_plain(one) if isinstance(one, BaseModel) else dict(one) for one in (before, after))
    return list(_differences(first, second, ()))


def _differences(before: Any, after: Any, path: ConfigPath) -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from _differences(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield Difference(dotted(path), before, after)

"""Which code a run would execute at a site: distribution, version and a hash of the files, without importing any of it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pppml_core import __version__
from pppml_core.component import KINDS
from pppml_core.discovery import CORE
from pppml_core.errors import PluginError
from pppml_core.registry import Registry

#: sections of a config that are the coordinator's: a site never runs their components.
ELSEWHERE = ("engine", "attacks", "reporters")
#: settings that name a component, or module:attribute; `of`: what another one is made from, see :meth:`.Registry.named`.
NAMING = ("use", "of")
#: flags of a compiled file that stands for its source by a hash which Python does not look at (PEP 552).
_UNCHECKED = 0b01


@dataclass(frozen=True)
class Code:
    """The code of one distribution as it is installed here. ``sha256``: hexadecimal, over names and bytes of the files of its package."""

    version: str
    sha256: str

    def to_dict(self) -> dict[str, str]:
        """Plain data."""
        return {"version": self.version, "sha256": self.sha256}


def used(config: Mapping[str, Any], registry: Registry) -> list[tuple[str, str]]:
    """(place, name) of every component, or ``module:attribute``, that a resolved config in plain form has sites use; in order of place.

    A part of another part, such as ``aggregator.backend``, is one where a plugin offers that name.
    """
    named = [(place, name) for section, value in config.items() if section not in ELSEWHERE for place, name in _uses(section, value)]
    return sorted((place, name) for place, name in named if place in KINDS or ":" in name or _kind(place, name, registry))


def _uses(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key in NAMING:
            if isinstance(name := value.get(key), str):
                yield (place if key == "use" else f"{place}.{key}"), name
        for key, inner in value.items():
            yield from _uses(f"{place}.{key}", inner)


def _kind(place: str, name: str, registry: Registry) -> str | None:
    if place in KINDS:
        return place
    return next((kind for kind in KINDS if any(component.name == name for component in registry.components(kind))), None)


def code_of_run(config: Mapping[str, Any], registry: Registry) -> dict[str, Code]:
    """Distribution -> its code here, for the core and everything :func:`used`. Raises PluginError for what is not installed."""
    versions, found = registry.versions(), {CORE: Code(__version__, code_hash("pppml_core"))}
    for place, name in used(config, registry):
        if ":" not in name:
            component = registry.get(_kind(place, name, registry) or place, name)
            package = component.target.partition(":")[0].partition(".")[0]
            found.setdefault(component.distribution, Code(versions[component.distribution], code_hash(package)))
    return found


@lru_cache(maxsize=64)
def code_hash(package: str) -> str:
    """SHA-256 over the files of an importable top-level package or module: relative name, length, bytes, in order of name."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise PluginError(f"the package {package!r} cannot be found", place=package, hint="install it again")
    digest = hashlib.sha256()
    for folder in spec.submodule_search_locations or [str(Path(spec.origin or "").parent)]:
        root = Path(folder)
        _refuse_hidden(root)
        files = [Path(spec.origin or "")] if not spec.submodule_search_locations else sorted(p for p in root.rglob("*") if _is_code(p))
        for file in files:
            data = file.read_bytes()
            digest.update(f"{file.relative_to(root).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _refuse_hidden(root: Path) -> None:
    """Raise PluginError where Python would run something else than the files that are hashed: through a link, or from a cache that it does
    not compare with its source.
    """
    for path in root.rglob("*"):
        if path.is_symlink():
            raise PluginError(f"{path.name} is a link, and what it leads to has no hash", place=root.name, hint="install it again")
        if path.suffix == ".pyc" and path.parent.name == "__pycache__":
            with open(path, "rb") as file:
                flags = int.from_bytes(file.read(8)[4:], "little")
            if flags == _UNCHECKED:
                raise PluginError(f"{path.name} is never compared with its source", place=root.name, hint="remove __pycache__")


def _is_code(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")

"""``Registry``: what is installed, frozen after discovery, never global.

::

    registry = Registry.discover()                       # the entry points of the group ``pppml``
    registry = Registry.only(my_plugin_module)           # tests: these and the built-ins, nothing else
    component = registry.get("model", "unet")            # or an error that says what to do
    model = registry.build("model", config.model)        # Target(config, **built choices)
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from pppml_core import __version__
from pppml_core.adhoc import AttributeConfig, ObjectConfig, assemble, choice_of, imported, interface
from pppml_core.component import KINDS, Component, ComponentConfig
from pppml_core.discovery import BUILTIN, CORE, Offer, canonical, from_module, from_objects, installed
from pppml_core.errors import ConfigError, PluginConflict, PluginError, nearest
from pppml_core.known import KNOWN, known

Status = Literal["ok", "broken", "conflict", "not installed"] | str


@dataclass(frozen=True)
class Row:
    """A line of ``pppml plugins``. ``status``: ok, broken, conflict, ``needs X``, not installed."""

    kind: str
    name: str
    distribution: str
    version: str
    status: Status
    summary: str


@dataclass(frozen=True, eq=False)
class Registry:
    """All offers of all plugins, in order of distribution. Two registries are never equal: each is its own discovery."""

    offers: tuple[Offer, ...]
    #: the distributions that PPPML_PLUGINS allowed; None: all.
    allowed: frozenset[str] | None = None

    @classmethod
    def discover(cls) -> Registry:
        """Everything installed; the environment variable PPPML_PLUGINS (distributions, by comma) restricts it."""
        names = frozenset(canonical(name.strip()) for name in os.environ.get("PPPML_PLUGINS", "").split(",") if name.strip())
        return cls(tuple(installed(names or None)), names or None)

    @classmethod
    def only(cls, *things: Any, builtin: bool = True) -> Registry:
        """For tests: these only (modules or objects with hooks, ``{kind: [Component]}``, ``(kind, Component)``, lists of them)."""
        own = (from_module(BUILTIN, CORE, __version__, "builtin"),) if builtin else ()
        return cls((*own, *from_objects(things)))

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, str], tuple[Component, ...]]:
        found: dict[tuple[str, str], tuple[Component, ...]] = {}
        for offer in self.offers:
            for kind, component in offer.components:
                found[kind, component.name] = (*found.get((kind, component.name), ()), component)
        return MappingProxyType(found)

    def components(self, kind: str) -> list[Component]:
        """The components of a kind that a config may name, sorted by name; names in conflict are left out."""
        return [found[0] for (of, _), found in sorted(self._by_name.items(), key=lambda item: item[0]) if of == kind and len(found) == 1]

    def get(self, kind: str, name: str) -> Component:
        """The component of that name.

        Raises PluginConflict where two distributions offer it, PluginError where its plugin is broken or not installed, and ConfigError
        with the nearest spelling where nobody offers it.
        """
        found = self._by_name.get((kind, name), ())
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(component.distribution for component in found)
            raise PluginConflict(f"{kind} {name!r} is offered by {owners}", place=kind, hint="uninstall one, or choose with PPPML_PLUGINS")
        raise self._unknown(kind, name)

    def _unknown(self, kind: str, name: str) -> PluginError | ConfigError:
        if entry := known(kind, name):
            broken = [offer for offer in self.offers if offer.reason and offer.distribution == entry.distribution]
            if broken:
                offer = broken[0]
                reason = f"{kind} {name!r} is not available: its plugin {offer.distribution} {offer.version} is broken: {offer.reason}"
                return PluginError(reason, place=kind, hint="`pppml plugins` lists the state of every plugin")
            if self.allowed is not None and entry.distribution not in self.allowed:
                return PluginError(
                    f"{kind} {name!r} is part of {entry.distribution}, which is not loaded",
                    place=kind,
                    hint=f"add {entry.distribution} to PPPML_PLUGINS, and install it if it is not",
                )
            return PluginError(
                f"{kind} {name!r} is part of {entry.distribution}, which is not installed",
                place=kind,
                hint=f"pip install {entry.distribution} (in a checkout: pip install ./{entry.folder})",
            )
        owners = {other: component[0].distribution for (of, other), component in self._by_name.items() if of == kind}
        for entry in KNOWN:
            if entry.kind == kind:
                owners.setdefault(entry.name, f"{entry.distribution}, not installed")
        if close := nearest(name, owners):
            hint = f"did you mean {close!r} ({owners[close]})?"
        elif other := next((of for of, same in self._by_name if same == name), None):
            hint = f"{name!r} is of kind {other!r}; of kind {kind!r} there are: {', '.join(sorted(owners)) or 'none'}"
        else:
            hint = f"there are: {', '.join(sorted(owners)) or 'none'}"
        if broken_now := sorted({offer.distribution for offer in self.offers if offer.reason}):
            hint += f" (broken, so nothing of them is listed: {', '.join(broken_now)})"
        return ConfigError(f"there is no {kind} {name!r}", place=kind, hint=hint)

    def rows(self, *, everything: bool = False) -> list[Row]:
        """The table of ``pppml plugins``, by kind; ``everything`` adds what the catalogue knows and is not installed."""
        rows = []
        for offer in self.offers:
            about = (offer.distribution, offer.version)
            if offer.reason:
                rows.append(Row("", offer.plugin, *about, "broken", offer.reason))
            for kind, component in offer.components:
                status, summary = "ok", component.summary
                others = [same.distribution for same in self._by_name[kind, component.name] if same is not component]
                if others:
                    status, summary = "conflict", f"also offered by {', '.join(others)}; {summary}"
                elif missing := component.missing():
                    status = f"needs {', '.join(missing)}"
                rows.append(Row(kind, component.name, *about, status, summary))
        if everything:
            rows += [
                Row(entry.kind, entry.name, entry.distribution, "", "not installed", entry.summary)
                for entry in KNOWN
                if (entry.kind, entry.name) not in self._by_name
            ]
        order = [*KINDS, ""]
        return sorted(rows, key=lambda row: (order.index(row.kind), row.name, row.distribution))

    def versions(self) -> dict[str, str]:
        """Distribution -> version of everything that is loaded and not broken."""
        return {offer.distribution: offer.version for offer in self.offers if not offer.reason}

    def recipes(self) -> dict[str, Path]:
        """``distribution/name`` -> YAML file, of all packages that entry points of the group ``pppml.recipes`` name."""
        found = {}
        for offer in self.offers:
            for package in offer.recipes:
                for folder in _folders(package, offer.distribution):
                    found.update({f"{offer.distribution}/{file.stem}": file for file in sorted(folder.glob("*.yaml"))})
        return found

    def build(self, kind: str, config: ComponentConfig, objects: Mapping[str, Any] | None = None) -> Any:
        """The object a bound config describes: ``Target(config, **built choices)``.

        ``objects``: live objects for ``use: object``, by key (default: the kind). Raises ConfigError or PluginError.
        """
        if isinstance(config, AttributeConfig):
            return assemble(kind, imported(kind, config.use), config.args, kind)
        if isinstance(config, ObjectConfig):
            return assemble(kind, _given(kind, config, objects or {}), config.args, kind)
        name = getattr(config, "use", None)
        if not isinstance(name, str):
            raise ConfigError(f"a {type(config).__name__} without `use` cannot be built", place=kind, hint="bind it with pppml_core.config")
        component = self.get(kind, name)
        choices = {}
        for field, info in type(config).model_fields.items():
            if choice := choice_of(info):
                choices[field] = self._build_choice(choice.kind, getattr(config, field), objects)
        target, wanted = component.load(), interface(kind)
        # A class is judged before it is called: what a wrong one would raise says nothing.
        if not isinstance(target, type) or issubclass(target, wanted):
            built = target(config, **choices)
            if isinstance(built, wanted):
                return built
        reason = f"{kind} {name!r}: {component.target} is no {wanted.__name__}"
        raise PluginError(reason, place=component.distribution, hint="report this to its author")

    def named(self, kind: str, name: str, args: Mapping[str, Any], place: str) -> Any:
        """The object that a setting of another component names, as in ``of: small-cnn, args: {channels: [8, 8, 8]}``.

        Args:
            kind: of it.
            name: of an installed component, or ``module:attribute``.
            args: its settings, or what it is called with.
            place: the setting that named it, for errors.

        Raises ConfigError or PluginError that says what is wrong with name or settings.
        """
        if ":" in name:
            return assemble(kind, imported(place, name), args, place)
        component = self.get(kind, name)
        try:
            config = component.config(**args)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in (kind, "args", *first["loc"]))
            hint = f"settings of `{name}`: {', '.join(component.config.model_fields) or 'none'}"
            raise ConfigError(first["msg"].removeprefix("Value error, "), place=where, hint=hint) from error
        return component.load()(config)

    def _build_choice(self, kind: str, value: Any, objects: Mapping[str, Any] | None) -> Any:
        if isinstance(value, ComponentConfig):
            return self.build(kind, value, objects)
        if isinstance(value, Sequence):
            return [self.build(kind, item, objects) for item in value]
        return None


def _given(kind: str, config: ObjectConfig, objects: Mapping[str, Any]) -> Any:
    key = config.key or kind
    if key not in objects:
        about = f" ({config.about})" if config.about else ""
        raise ConfigError(
            f"a Python object{about} is needed that is not here",
            place=kind,
            hint=f'give it through the API: objects={{"{key}": ...}}; for files and other processes use "module:attribute"',
        )
    return objects[key]


def _folders(package: str, distribution: str) -> Iterable[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except ImportError as error:
        raise PluginError(f"its recipes package {package!r} cannot be found: {error}", place=distribution) from error
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"its recipes package {package!r} cannot be found", place=distribution)
    return [Path(folder) for folder in spec.submodule_search_locations]

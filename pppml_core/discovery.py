"""From an entry point to checked components: one try per plugin, whose failure is a reason in words, never a crash.

pluggy's own loader is not used: there one broken plugin hides all others, and a duplicate is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from types import ModuleType
from typing import Any

import pluggy

import pppml_core
from pppml_core import hookspecs
from pppml_core.adhoc import choice_of
from pppml_core.component import KINDS, OF_ANY_TASK, Component, ComponentConfig
from pppml_core.errors import PluginError, nearest

CORE = "pppml-core"
GROUP = "pppml"
BUILTIN = "pppml_core.builtin.plugin"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TARGET = re.compile(r"[\w.]+:\w+")


@dataclass(frozen=True)
class Offer:
    """What one plugin offers: components by kind, or the reason why it is broken."""

    plugin: str
    distribution: str
    version: str
    components: tuple[tuple[str, Component], ...] = ()
    reason: str | None = None
    #: where this distribution's recipes are: the packages its entry points of the group ``pppml.recipes`` name.
    recipes: tuple[str, ...] = field(default=())


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(allowed: frozenset[str] | None) -> Iterator[Offer]:
    """Offers of all installed plugins, sorted by distribution and entry point; the core's own come first.

    ``allowed``: canonical names of the distributions to load; None: all. The core is always loaded.
    """
    every = metadata.entry_points()
    recipes: dict[str, list[str]] = {}
    for point in every.select(group=f"{GROUP}.recipes"):
        recipes.setdefault(_owner(point), []).append(point.value)
    points = [(_owner(point), point.name, point) for point in every.select(group=GROUP)]
    # Run from a source tree that is not installed, the core has no entry point; its components are there all the same.
    if not any(distribution == CORE for distribution, _, _ in points):
        yield from_module(BUILTIN, CORE, pppml_core.__version__, "builtin")
    for distribution, name, point in sorted(points, key=lambda found: (found[0] != CORE, found[0], found[1])):
        if allowed is None or distribution in allowed or distribution == CORE:
            yield _from_entry_point(point, name, distribution, recipes.pop(distribution, []))
    for distribution, packages in sorted(recipes.items()):
        if allowed is None or distribution in allowed:
            yield Offer("recipes", distribution, metadata.version(distribution), recipes=tuple(packages))
    for distribution in sorted((allowed or frozenset()) - {found[0] for found in points} - set(recipes) - {CORE}):
        yield Offer(distribution, distribution, "", reason="named in PPPML_PLUGINS but not installed")


def _owner(point: metadata.EntryPoint) -> str:
    """The distribution an entry point belongs to, as its metadata say; a damaged installation has none."""
    try:
        return canonical(point.dist.name) if point.dist is not None else ""
    except Exception:  # the metadata file is missing or unreadable: importlib.metadata lets through what the parser raised
        return ""


def _from_entry_point(point: metadata.EntryPoint, name: str, distribution: str, recipes: Sequence[str]) -> Offer:
    try:
        assert point.dist is not None
        version, requires = point.dist.version, point.dist.requires or []
    except Exception as error:  # a damaged dist-info folder, in whatever way
        return Offer(name, distribution, "", reason=f"the metadata of {point.value} cannot be read: {type(error).__name__}")
    if reason := _other_core(requires):
        return Offer(name, distribution, version, reason=reason)
    return replace(from_module(point.value, distribution, version, name), recipes=tuple(recipes))


def _other_core(requires: Sequence[str]) -> str | None:
    """The plugin's own requirement of the core, where the running core does not meet it."""
    from packaging.requirements import InvalidRequirement, Requirement

    for text in requires:
        if not canonical(text).startswith(CORE):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return f"its requirement {text!r} cannot be read"
        if canonical(requirement.name) != CORE or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if not requirement.specifier.contains(pppml_core.__version__, prereleases=True):
            return f"requires {text}, but pppml-core {pppml_core.__version__} is running"
    return None


def from_module(module: str | object, distribution: str, version: str, plugin: str) -> Offer:
    """The offer of a plugin module (or its name, or an object with hook implementations)."""
    try:
        found = metadata.EntryPoint(plugin, module, GROUP).load() if isinstance(module, str) else module
        components = tuple((kind, replace(component, distribution=distribution)) for kind, component in _offered(found, plugin))
    # A plugin is foreign code: whatever it raises, SystemExit included, is its own failure and must not hide the others.
    except (Exception, SystemExit) as error:
        reason = error.message if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        return Offer(plugin, distribution, version, reason=" ".join(reason.split()))
    return Offer(plugin, distribution, version, components)


def _offered(module: object, plugin: str) -> list[tuple[str, Component]]:
    """Registers the module alone with pluggy, checks and calls its hooks. Raises PluginError."""
    manager = pluggy.PluginManager("pppml")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=plugin)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        wrong = next(name for name in dir(module) if manager.parse_hookimpl_opts(module, name) is not None and name not in KINDS.values())
        close = nearest(wrong, KINDS.values())
        raise PluginError(f"there is no hook {wrong!r}" + (f"; the nearest is {close!r}" if close else "")) from error
    unmarked = [name for name in KINDS.values() if hasattr(module, name) and manager.parse_hookimpl_opts(module, name) is None]
    if unmarked:
        raise PluginError(f"{unmarked[0]} is not marked with @hookimpl")
    out: list[tuple[str, Component]] = []
    for kind, hook in KINDS.items():
        for result in getattr(manager.hook, hook)():
            if isinstance(result, str | bytes) or not isinstance(result, Sequence):
                raise PluginError(f"{hook} returned {type(result).__name__}, not a list of Component")
            out += [(kind, checked(kind, item, hook)) for item in result]
    names = [(kind, component.name) for kind, component in out]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PluginError(f"it offers the {twice[0]} {twice[1]!r} twice")
    if not out:
        raise PluginError("it offers no component: no function marked with @hookimpl returned any")
    return out


def checked(kind: str, component: Any, origin: str) -> Component:
    """The component, if it is one and well formed. Raises PluginError."""
    if not isinstance(component, Component):
        raise PluginError(f"{origin} returned a list with {type(component).__name__} in it, not only Component")
    if not isinstance(component.name, str) or not _NAME.fullmatch(component.name) or component.name == "object":
        raise PluginError(f"{origin}: the name {component.name!r} is not lower-case words joined by '-'")
    if not (isinstance(component.config, type) and issubclass(component.config, ComponentConfig)):
        raise PluginError(f"{origin}: the config of {component.name!r} is not a ComponentConfig class")
    reserved = component.RESERVED | (set(OF_ANY_TASK) if kind == "task" else frozenset())
    if taken := sorted(reserved & set(component.config.model_fields)):
        raise PluginError(f"{origin}: the config of {component.name!r} has a field {taken[0]!r}, which is reserved")
    component.config.model_rebuild()  # raises where an annotation cannot be resolved; no work where all are
    for key, info in component.config.model_fields.items():
        choice = choice_of(info)
        if choice is not None and choice.kind not in KINDS:
            raise PluginError(f"{origin}: {component.name}.{key} is a choice of kind {choice.kind!r}, which there is not")
        if choice is not None and choice.kind == kind:
            raise PluginError(f"{origin}: {component.name}.{key} chooses among its own kind")
    if not isinstance(component.target, str) or not _TARGET.fullmatch(component.target):
        raise PluginError(f"{origin}: the target {component.target!r} of {component.name!r} is not 'module:Class'")
    if not isinstance(component.summary, str) or not component.summary.strip() or "\n" in component.summary:
        raise PluginError(f"{origin}: {component.name!r} has no one-line summary")
    return component


def from_objects(things: Sequence[Any]) -> Iterator[Offer]:
    """Offers of modules, of ``{kind: [components]}`` and of ``(kind, component)``, for :meth:`Registry.only`."""
    for thing in things:
        if isinstance(thing, Offer):
            yield thing
        elif isinstance(thing, dict):
            pairs = [(kind, component) for kind, components in thing.items() for component in components]
            yield _from_pairs(pairs)
        elif isinstance(thing, tuple) and len(thing) == 2 and isinstance(thing[1], Component):
            yield _from_pairs([thing])
        elif isinstance(thing, list | tuple):
            yield from from_objects(thing)
        else:
            name = thing.__name__ if isinstance(thing, ModuleType) else type(thing).__name__
            yield from_module(thing, name.partition(".")[0], "0", name)


def _from_pairs(pairs: Sequence[tuple[str, Component]]) -> Offer:
    for kind, _ in pairs:
        if kind not in KINDS:
            raise PluginError(f"there is no kind {kind!r}", hint=f"one of {', '.join(KINDS)}")
    components = tuple(
        (kind, replace(checked(kind, component, kind), distribution=component.distribution or "given")) for kind, component in pairs
    )
    return Offer("given", "given", "0", components)

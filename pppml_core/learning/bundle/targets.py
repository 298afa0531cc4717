"""What a bundle's configs may name: torch, MONAI and numpy, so that whoever has MONAI can use it."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pppml_core.errors import ConfigError

PACKAGES = ("builtins", "monai", "numpy", "torch")
#: Of Python itself, what the configs import at their head for their expressions.
IMPORTED = (*PACKAGES, "collections", "glob", "os")
#: Ways to import without a statement. (A search of the text, for an expression with MONAI's references is no Python)
IMPORTERS = re.compile(r"\b(?:__import__|importlib)\b")


def check_targets(config: Any, whose: str, place: str) -> None:
    """Look through ``config`` (maps and lists of MONAI's config form) at every ``_target_`` and every import of an expression.

    A target may be a name in torch, monai or numpy, a short name that MONAI or Python itself resolves, an expression (``$``) or a reference
    (``@``) to another part. Of an expression, import statements and the words ``__import__`` and ``importlib`` are seen; what it
    reaches through the packages that it may name is not.

    Args:
        config: plain data.
        whose: who wrote it, for the error: ``the definition that UNet gives``.
        place: config section of that component.

    Raises ConfigError for anything else: the bundle might need a package that its user need not have.
    """
    for name, allowed in _named(config):
        if not allowed:
            raise ConfigError(
                f"{whose} names {name!r}, which is not one of torch, MONAI and numpy",
                place=place,
                hint="name classes and functions of torch, monai and numpy with their full path, or MONAI's by their short name",
            )


def _named(part: Any) -> Iterator[tuple[str, bool]]:
    """Every name in ``part``, and whether it may be there."""
    if isinstance(part, Mapping):
        target = part.get("_target_")
        if isinstance(target, str) and not target.startswith(("$", "@")):
            yield target, _allowed(target)
        for value in part.values():
            yield from _named(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _named(value)
    elif isinstance(part, str) and part.startswith("$"):
        yield from ((name, False) for name in IMPORTERS.findall(part))
        yield from ((name, name.partition(".")[0] in IMPORTED) for name in _imported(part[1:]))


def _imported(expression: str) -> Iterator[str]:
    """Modules of ``import a`` and ``from a import b``, which MONAI allows as an expression."""
    try:
        tree = ast.parse(expression.strip())
    except SyntaxError:  # MONAI's references are no Python; a statement holds none
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


def _allowed(name: str) -> bool:
    package, dot, _ = name.partition(".")
    return package in PACKAGES if dot else hasattr(builtins, name) or _of_monai(name)


@cache
def _of_monai(name: str) -> bool:
    """Whether MONAI finds this short name among its own classes and functions, as it does when it reads a config."""
    found = _locator().get_component_module_name(name) or ()
    modules = [found] if isinstance(found, str) else list(found)
    return bool(modules) and modules[0].partition(".")[0] == "monai"


@cache
def _locator() -> Any:
    from monai.bundle import ComponentLocator

    return ComponentLocator()

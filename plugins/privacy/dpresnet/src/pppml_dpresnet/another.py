"""The factory of another network, by name, for networks that are made from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pppml_core.errors import ConfigError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.registry import Registry
from pppml_dpresnet.config import MADE_FROM_ANOTHER


def factory(name: str, args: Mapping[str, Any], place: str) -> ModelFactory:
    """The factory of an installed model, or of ``module:attribute`` (a factory, a torch module, or a function that returns one).

    See :meth:`pppml_core.registry.Registry.named`. Raises ConfigError where that network is made from another one too.
    """
    if name in MADE_FROM_ANOTHER:
        raise ConfigError(f"{name!r} is made from another network itself", place=place, hint="name that network")
    found: ModelFactory = Registry.discover().named("model", name, args, place)
    return found

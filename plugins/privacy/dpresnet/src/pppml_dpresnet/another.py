"""The factory of another network, by name, for networks that are made from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pppml_core.adhoc import assemble, imported
from pppml_core.errors import ConfigError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.registry import Registry
from pppml_dpresnet.plugin import pppml_models


def factory(name: str, args: Mapping[str, Any], place: str) -> ModelFactory:
    """The factory of an installed model, or of ``module:attribute`` (a factory, a torch module, or a function that returns one).

    Args:
        name: as a config names it.
        args: its settings, or what it is called with.
        place: the setting that named it, for errors.

    Raises ConfigError or PluginError that says what is wrong with name or settings.

    """
    found: ModelFactory
    if ":" in name:
        found = assemble("model", imported(place, name), args, place)
        return found
    own = {component.name: component for component in pppml_models()}
    component = own.get(name) or Registry.discover().get("model", name)
    if name in own and own[name].config.model_fields.keys() & {"features", "of"}:
        raise ConfigError(f"{name!r} is made from another network itself", place=place, hint="name that network")
    try:
        config = component.config(**args)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("model", "args", *first["loc"]))
        hint = f"settings of `{name}`: {', '.join(component.config.model_fields) or 'none'}"
        raise ConfigError(first["msg"].removeprefix("Value error, "), place=where, hint=hint) from error
    found = component.load()(config)
    return found

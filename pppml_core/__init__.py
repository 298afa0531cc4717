"""pppml: personalized, privacy-preserving federated learning for medical images. Everything public is reached from here, lazily."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; at run time everything comes through __getattr__
    from pppml_core.api import Experiment as Experiment
    from pppml_core.api import Run as Run
    from pppml_core.api import load as load
    from pppml_core.api import open as open
    from pppml_core.api import plugins as plugins
    from pppml_core.api import schema as schema
    from pppml_core.api import sweep as sweep
    from pppml_core.component import Choice as Choice
    from pppml_core.component import Component as Component
    from pppml_core.component import ComponentConfig as ComponentConfig
    from pppml_core.errors import PppmlError as PppmlError
    from pppml_core.hookspecs import hookimpl as hookimpl

__version__ = "0.1.0"

_PUBLIC = {
    "Component": "pppml_core.component",
    "ComponentConfig": "pppml_core.component",
    "Choice": "pppml_core.component",
    "hookimpl": "pppml_core.hookspecs",
    "PppmlError": "pppml_core.errors",
    "Experiment": "pppml_core.api",
    "Run": "pppml_core.api",
    "load": "pppml_core.api",
    "open": "pppml_core.api",
    "sweep": "pppml_core.api",
    "plugins": "pppml_core.api",
    "schema": "pppml_core.api",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'pppml_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

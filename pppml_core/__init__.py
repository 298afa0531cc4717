"""pppml: personalized, privacy-preserving federated learning for medical images. Everything public is reached from here, lazily."""

from __future__ import annotations

import importlib
from typing import Any

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

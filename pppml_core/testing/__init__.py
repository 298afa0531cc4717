"""The conformance kit: suites that a plugin's tests subclass, and the harness for secure sums. Reached lazily, never by the core."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "AggregatorSuite": "pppml_core.testing.aggregator_suite",
    "PersonalizationSuite": "pppml_core.testing.personalization_suite",
    "PluginSuite": "pppml_core.testing.plugin_suite",
    "PrivacySuite": "pppml_core.testing.privacy_suite",
    "TaskSuite": "pppml_core.testing.task_suite",
    "SessionHarness": "pppml_core.testing.harness",
    "HarnessResult": "pppml_core.testing.harness",
    "HEBackendSuite": "pppml_core.testing.he_suite",
    "Basis": "pppml_core.testing.knowledge",
    "KnowledgeSuite": "pppml_core.testing.knowledge_suite",
    "edited": "pppml_core.testing.lying",
    "distinguish": "pppml_core.testing.worlds",
    "Fault": "pppml_core.engines.faults",
    "overrides_suite_test": "pppml_core.testing.suite",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'pppml_core.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

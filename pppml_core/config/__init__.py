"""A run's settings: read (:func:`load_yaml`), overlaid, bound to what is installed, checked, saved. Start at :func:`resolve`."""

from pppml_core.config.binding import bind, json_schema
from pppml_core.config.objects import split_objects
from pppml_core.config.overrides import apply_overrides
from pppml_core.config.resolving import InvalidConfig, resolve
from pppml_core.config.run_config import RunConfig
from pppml_core.config.saved import Difference, diff, save_resolved, to_plain
from pppml_core.config.source import Document, load_yaml

__all__ = [
    "Difference",
    "Document",
    "InvalidConfig",
    "RunConfig",
    "apply_overrides",
    "bind",
    "diff",
    "json_schema",
    "load_yaml",
    "resolve",
    "save_resolved",
    "split_objects",
    "to_plain",
]

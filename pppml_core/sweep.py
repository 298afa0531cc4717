"""The former name of :mod:`pppml_core.sweeps`, for imports that still use it."""

from __future__ import annotations

from pppml_core.sweeps import Point, Sweep, SweepResult, as_settings, expand, open_sweep, parse_grid, parse_seeds

__all__ = ["Point", "Sweep", "SweepResult", "as_settings", "expand", "open_sweep", "parse_grid", "parse_seeds"]

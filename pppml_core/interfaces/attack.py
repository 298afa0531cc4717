"""Attacks: readers of an adversary's view.

An attack is given what a named adversary holds (``view``), a budget and public knowledge (``ctx``), and returns its best guess; only
the scorer knows the truth. It must model the defence whose public parameters it is handed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pppml_core.component import ComponentConfig


@dataclass(frozen=True)
class Reconstruction:
    """An attack's answer: what it claims to have found, and the effort it took."""

    guess: Mapping[str, Any]
    effort: Mapping[str, float]


class Attack(ABC):
    """Reads a view."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def run(self, view: Any, budget: float, ctx: Any) -> Reconstruction:
        """The best guess within ``budget`` seconds."""

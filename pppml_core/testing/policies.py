"""Policies of homes, for tests: what is not said of a rule is said here."""

from __future__ import annotations

from pathlib import Path

import yaml

from pppml_core.federation.home import policy_template
from pppml_core.federation.policy import POLICY_FILE


def insist(home: Path, rules: str = "", *, careful: bool = False) -> None:
    """Write a home's policy: every rule of a simulation, or of a hospital where ``careful``, with ``rules`` (YAML) laid over them."""
    held = {**yaml.safe_load(policy_template(careful=careful)), **(yaml.safe_load(rules) or {})}
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / POLICY_FILE).write_text(yaml.safe_dump(held))
    (home / POLICY_FILE).chmod(0o600)

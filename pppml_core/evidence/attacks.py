"""Runs one attack on a finished run and writes what came of it to ``attacks/NAME-VANTAGE-rROUND.json``."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pppml_core.component import ComponentConfig
from pppml_core.config import resolve, to_plain
from pppml_core.errors import ConfigError
from pppml_core.evidence.vantage import file_part, read_vantage
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.files import write_atomic
from pppml_core.federation.rundir import RunDir
from pppml_core.interfaces.attack import AdversaryView, Attack, AttackContext, Verdict


def run_attack(
    folder: Path,
    result: Mapping[str, Any],
    parts: Assembly,
    use: str,
    vantage: str,
    round: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Attack the run in ``folder``; returns the record that was written.

    Args:
        folder: of a finished run.
        result: its ``result.json``.
        parts: its components, built from its resolved config.
        use: name of the attack.
        vantage: who looks; see :func:`.read_vantage`.
        round: the attacked round, or the last of those an audit covers; None: the run's last.
        settings: of the attack.

    Raises ConfigError on an unknown attack, setting, vantage or round, and for an attack that
    reads a view; PluginError for an attack whose plugin is not installed.
    """
    config = bound(parts, {**(settings or {}), "use": use})
    attack: Attack = parts.registry.build("attack", config)
    if attack.reads_view:
        text = f"{use!r} reads what an adversary holds of a run's messages, and runs do not hand out such views"
        raise ConfigError(text, place="attack", hint="use an attack that needs none, such as dp-audit")
    sizes = _sizes(RunDir(folder), parts)
    who = read_vantage(vantage, list(sizes))
    last = int(result["rounds"])
    if round is not None and not 1 <= round <= last:
        raise ConfigError(f"there is no round {round}", place="round", hint=f"this run has rounds 1 to {last}")
    setting = parts.privacy_setting(sizes)
    context = AttackContext(folder, parts.config, parts, setting, parts.mechanism.plan(setting), result, who, round or last)
    began = time.perf_counter()
    verdict = attack.run(AdversaryView(who, ()), math.inf, context)
    if not isinstance(verdict, Verdict):
        raise ConfigError(f"{use!r} reads no view and yet gives a guess, which nothing can score", place="attack", hint="return a Verdict")
    record = {
        "attack": use,
        "vantage": vantage,
        "round": context.round,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "metrics": dict(verdict.metrics),
        "control": dict(verdict.control),
        "best_guess": dict(verdict.best_guess),
        "effort": {"seconds": time.perf_counter() - began, **verdict.effort},
        "settings": {name: value for name, value in config.model_dump(mode="json").items() if name != "use"},
    }
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    write_atomic(record_path(folder, use, vantage, context.round), text.encode())
    return record


def record_path(folder: Path, use: str, vantage: str, round: int) -> Path:
    """Where the record of an attack is."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", use)
    return folder / "attacks" / f"{name}-{file_part(vantage)}-r{round}.json"


def bound(parts: Assembly, attack: Mapping[str, Any]) -> ComponentConfig:
    """The attack's settings, checked as a config file's are."""
    config = resolve({**to_plain(parts.config), "attacks": [dict(attack)]}, registry=parts.registry)
    return config.attacks[0]


def _sizes(directory: RunDir, parts: Assembly) -> dict[str, int]:
    """Training examples of each site, as the run was planned for; nothing is loaded where the run's folder says it."""
    known = (directory.read_json("fingerprint.json") or {}).get("training examples")
    return {s.slug: int(known[s.slug]) if known else len(parts.load(s.slug).train) for s in parts.task.sites()}

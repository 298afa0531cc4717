"""Runs one attack on a finished run and writes what came of it to ``attacks/NAME-VANTAGE-rROUND.json``."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pppml_core.component import ComponentConfig
from pppml_core.config import resolve, to_plain
from pppml_core.errors import ConfigError, check_site
from pppml_core.evidence.evaluate import Evaluation
from pppml_core.evidence.found import Cell, Control, Effort, Found
from pppml_core.evidence.reading import lesion_reader
from pppml_core.evidence.record import finite, record_of, settings_of
from pppml_core.evidence.recorded import Recorded
from pppml_core.evidence.rounds import weights_before
from pppml_core.evidence.vantage import file_part, read_vantage
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.files import write_atomic
from pppml_core.federation.rundir import RunDir
from pppml_core.interfaces.attack import AdversaryView, Attack, AttackContext, Vantage, Verdict
from pppml_core.wire.codec import sha256_of

Emit = Callable[[Mapping[str, Any]], None]
#: kinds of answer that are about all images of a round, so that none is staged for them.
RECORDED = ("members", "site")


class Target:
    """A finished run that is attacked.

    Args:
        folder: of the run.
        result: its ``result.json``.
        parts: its components, built from its resolved config.
        live: whether live Python objects are among them.
    """

    def __init__(self, folder: Path, result: Mapping[str, Any], parts: Assembly, live: bool = False) -> None:
        self.folder, self.result, self.parts, self.live = folder, result, parts, live
        self.sizes = _sizes(RunDir(folder), parts)
        self.rounds = int(result["rounds"])

    def key(self, round: int | None) -> str:
        """The same for runs whose staged rounds differ in nothing but the defence: task, network, learning rate and weights."""
        weights = weights_before(self.folder, self.parts, self.rounds + 1 if round is None else round, self.rounds)
        config = self.parts.config
        about = {name: to_plain(config)[name] for name in ("task", "model", "training", "encoding")} | {"rounds": self.rounds}
        digest = sha256_of({"weights": weights, "about": json.dumps(about, sort_keys=True, default=str), "round": round or 0})
        return digest.hex()

    def vantage(self, text: str) -> Vantage:
        """Who looks; see :func:`.read_vantage`."""
        return read_vantage(text, list(self.sizes))

    def checked(self, round: int | None) -> None:
        """Raise ConfigError where there is no such round."""
        if round is not None and not 1 <= round <= self.rounds:
            raise ConfigError(f"there is no round {round}", place="round", hint=f"this run has rounds 1 to {self.rounds}")

    def watched(self, site: str | None, vantages: Sequence[Vantage]) -> str:
        """The site that is attacked: the one that was named, else the largest that is in no vantage."""
        if site is not None:
            check_site(site, self.sizes, ConfigError, place="site", where="in this run")
            return site
        members = frozenset[str]().union(*(v.sites for v in vantages))
        named = [s for v in vantages for s in sorted(v.neighbours)]
        free = [s for s in self.sizes if s not in members]
        if not free:
            text = "every site of this run is in the coalition, so there is none left to attack"
            raise ConfigError(text, place="vantage", hint="leave one out, or name one that is attacked: --site NAME")
        return named[0] if named else max(free, key=lambda s: self.sizes[s])

    def attack(
        self,
        cells: Sequence[Cell],
        round: int | None,
        effort: Effort,
        site: str | None = None,
        *,
        controls: dict[str, Control] | None = None,
        emit: Emit = lambda event: None,
        judged: int = 1,
        ends: float = math.inf,
    ) -> list[dict[str, Any]]:
        """Stage a round for these cells; returns the records, each written as soon as it is whole.

        Args:
            cells: which.
            round: None: with the run's final model.
            effort: what is spent.
            site: the watched one.
            controls: see :class:`.Evaluation`; so is ``emit``.
            emit: gets events.
            judged: how many cells have their bounds judged together.
            ends: see :meth:`.Evaluation.run`; cells that come too late have no record.

        """
        self.checked(round)
        watched = self.watched(site, [cell.vantage for cell in cells])
        weights = weights_before(self.folder, self.parts, self.rounds + 1 if round is None else round, self.rounds)
        at = self.rounds if round is None else round
        reader = lesion_reader(self.folder, self.parts, self.rounds)
        evaluation = Evaluation(
            self.parts, self.sizes, weights, at, watched, effort, live=self.live, emit=emit, controls=controls, reader=reader
        )
        model = "the run's final model" if round is None else f"the model that round {round} began with"
        records = list[dict[str, Any]]()

        def done(found: Found) -> None:
            about, before = _about(found, watched, model), self.rounds if round is None else round - 1
            record = record_of(found, evaluation.stage.privacy, watched, at, about=about, before=before, rounds=self.rounds, cells=judged)
            records.append(self._write({**record, "asked": self.asked(found.cell.attack, effort, watched)}, found))

        evaluation.run(cells, done, ends)
        return records

    def recorded(
        self,
        cells: Sequence[Cell],
        round: int | None,
        effort: Effort,
        site: str | None = None,
        *,
        emit: Emit = lambda event: None,
        judged: int = 1,
        ends: float = math.inf,
    ) -> list[dict[str, Any]]:
        """Attack a round as it was recorded; returns the records, each written as soon as it is whole. ``round`` None: the last.

        Arguments as of :meth:`attack`; no cell is begun after ``ends``.
        """
        self.checked(round)
        watched, at = self.watched(site, [cell.vantage for cell in cells]), self.rounds if round is None else round
        evaluation = Recorded(self.folder, self.parts, self.sizes, at, watched, effort, live=self.live, emit=emit)
        records = []
        for cell in cells:
            if time.monotonic() > ends:
                break
            (found,) = evaluation.run([cell])
            seen = f"rounds 1 to {at}" if found.attack.rounds == "all" and at > 1 else f"round {at}"
            about = (
                f"Recorded: {seen} of this run as it happened, on the {self.sizes[watched]} training images of {watched}. Control: the "
                "sites' own updates in the open, made again with plain gradients."
            )
            record = record_of(
                found, evaluation.privacy, watched, at, about=about, staged=False, before=at, rounds=self.rounds, cells=judged
            )
            records.append(self._write({**record, "asked": self.asked(found.cell.attack, effort, watched)}, found))
        return records

    def audit(self, config: ComponentConfig, who: Vantage, round: int | None) -> dict[str, Any]:
        """An attack that reads no view and returns a verdict."""
        self.checked(round)
        attack: Attack = self.parts.registry.build("attack", config)
        use = config.use  # type: ignore[attr-defined]
        setting = self.parts.privacy_setting(self.sizes)
        plan = self.parts.mechanism.plan(setting)
        context = AttackContext(self.folder, self.parts.config, self.parts, setting, plan, self.result, who, round or self.rounds)
        began = time.perf_counter()
        verdict = attack.run(AdversaryView(who, ()), math.inf, context)
        if not isinstance(verdict, Verdict):
            text = f"{use!r} reads no view and yet gives a guess, which nothing can score"
            raise ConfigError(text, place="attack", hint="return a Verdict")
        record = {
            "attack": use,
            "vantage": who.text,
            "round": context.round,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "metrics": dict(verdict.metrics),
            "control": dict(verdict.control),
            "best_guess": dict(verdict.best_guess),
            "effort": {"seconds": time.perf_counter() - began, **verdict.effort},
            "settings": settings_of(config),
            "why": "misfit" if verdict.outcome == "not_applicable" else None,
            "asked": self.asked(config, None, None),
        }
        return self._write(record, None)

    def asked(self, config: ComponentConfig, effort: Effort | None, site: str | None) -> dict[str, Any]:
        """What a record was asked for: it stands for another only where all of this is the same. ``effort`` None: of an audit."""
        settings = settings_of(config)
        if effort is None:
            return {"settings": settings}
        effort = effort.of(config)
        victims = effort.victims(self.parts.registry.build("attack", config))
        spent = {"victims": victims, "seconds": effort.seconds, "gallery": effort.gallery, "seed": effort.seed}
        return {"settings": settings, "site": site, **spent}

    def _write(self, record: dict[str, Any], found: Found | None) -> dict[str, Any]:
        path = record_path(self.folder, record["attack"], record["vantage"], record["round"])
        if found is not None and found.pictures:
            from pppml_core.evidence.strips import write_strip

            record["pictures"] = write_strip(path.with_suffix(".png"), found)
        text = json.dumps(finite(record), indent=2, allow_nan=False) + "\n"
        write_atomic(path, text.encode())
        return record


def run_attack(
    folder: Path,
    result: Mapping[str, Any],
    parts: Assembly,
    use: str,
    vantage: str,
    round: int | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    site: str | None = None,
    effort: Effort | None = None,
    recorded: bool | None = None,
    live: bool = False,
    emit: Emit = lambda event: None,
) -> dict[str, Any]:
    """Attack the run in ``folder``; returns the record that was written.

    Args:
        folder: of a finished run.
        result: its ``result.json``.
        parts: its components, built from its resolved config.
        use: name of the attack.
        vantage: who looks; see :func:`.read_vantage`.
        round: the attacked round, or the last of those an audit covers; None: the final model, or the run's last round.
        settings: of the attack.
        site: the watched one; None: the largest outside of the coalition.
        effort: victims, seconds, gallery, seed.
        recorded: attack the round as it was recorded, not one that is staged; None: as the attack needs it.
        live: whether live Python objects are among the parts.
        emit: gets ``victim`` events.

    Raises ConfigError on an unknown attack, setting, vantage, site or round; PluginError for an attack whose plugin is not installed.
    """
    target = Target(folder, result, parts, live)
    config = bound(parts, {**(settings or {}), "use": use})
    who = target.vantage(vantage)
    if not parts.registry.build("attack", config).reads_view:
        return target.audit(config, who, round)
    cell, spent = Cell(config, who), effort or Effort()
    if needs_recording(parts, config) if recorded is None else recorded:
        return target.recorded([cell], round, spent, site, emit=emit)[0]
    return target.attack([cell], round, spent, site, emit=emit)[0]


def needs_recording(parts: Assembly, config: ComponentConfig) -> bool:
    """Whether an attack asks about all images of a round, so that none is staged for it."""
    return parts.registry.build("attack", config).answers in RECORDED


def record_path(folder: Path, use: str, vantage: str, round: int) -> Path:
    """Where the record of an attack is."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", use)
    return folder / "attacks" / f"{name}-{file_part(vantage)}-r{round}.json"


def bound(parts: Assembly, attack: Mapping[str, Any]) -> ComponentConfig:
    """The attack's settings, checked as a config file's are."""
    config = resolve({**to_plain(parts.config), "attacks": [dict(attack)]}, registry=parts.registry)
    return config.attacks[0]


def _about(found: Found, site: str, model: str) -> str:
    batch = found.attack.batch
    step = "one training step on one image" if batch == 1 else f"one training step on {batch} images"
    lie = " The server lied about the model." if found.lied else ""
    return (
        f"Staged: {step} of {site} at {model}, every site making one such step, through this run's own clip, noise and secure sum. "
        f"What training on many images for many steps gives away is another question.{lie}"
    )


def _sizes(directory: RunDir, parts: Assembly) -> dict[str, int]:
    """Training examples of each site, as the run was planned for; nothing is loaded where the run's folder says it."""
    known = (directory.read_json("fingerprint.json") or {}).get("training examples")
    return {s.slug: int(known[s.slug]) if known else len(parts.load(s.slug).train) for s in parts.task.sites()}

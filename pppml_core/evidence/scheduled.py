"""The attacks of a config's ``attacks`` section: made while the run goes on, after the rounds they name, or at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pppml_core.component import ComponentConfig
from pppml_core.errors import ConfigError, PppmlError
from pppml_core.evidence.attacks import Target, needs_recording, record_path
from pppml_core.evidence.found import Cell, Effort
from pppml_core.evidence.vantage import read_vantage
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.plan import Plan

Emit = Callable[[Mapping[str, Any]], None]


def misfits(plan: Plan) -> list[str]:
    """Why the attacks of a config could not be made, each a sentence with its remedy."""
    config, out = plan.config, list[str]()
    sites = list(plan.sizes)
    written: dict[Path, int] = {}
    for number, attack in enumerate(config.attacks):
        place = f"attacks[{number}]"
        rounds, vantage = _of(attack)
        try:
            read_vantage(vantage, sites)
        except ConfigError as error:
            out.append(f"{place}: {error.message}; {error.hint}")
        if late := [r for r in rounds if r > config.run.rounds]:
            out.append(f"{place}: there is no round {late[0]}; the run has {config.run.rounds}")
        for at in rounds or [config.run.rounds]:
            path = record_path(Path(), attack.use, vantage, at)  # type: ignore[attr-defined]
            if (other := written.setdefault(path, number)) != number:
                out.append(f"{place}: its record would replace that of attacks[{other}]; name another round or vantage")
        assert plan.assembly is not None
        reads = plan.assembly.registry.build("attack", attack).reads_view
        if said := [] if reads else [name for name in ("victims", "seconds") if getattr(attack, name, None) is not None]:
            out.append(f"{place}: {attack.use} brings evidence of its own; leave out {' and '.join(said)}")  # type: ignore[attr-defined]
        if reads:
            if config.sites is not None:
                out.append(f"{place}: it is scored against images of the watched site, which are there; make it where all data are here")
            if needs_recording(plan.assembly, attack) and config.run.transcript != "secrets":
                out.append(f"{place}: it attacks rounds as they were recorded; set run.transcript: secrets")
            elif any(r > 1 for r in rounds) and config.run.transcript == "sizes":
                out.append(f"{place}: the model of a later round is read from the messages; set run.transcript: payloads")
    return out


class Scheduled:
    """Makes the attacks of a config; listens to a run's events.

    Args:
        folder: of the run.
        parts: of the run.
        emit: gets an ``attack`` event with the outcome of each.
    """

    def __init__(self, folder: Path, parts: Assembly, emit: Emit, *, live: bool = False) -> None:
        self._folder, self._parts, self._emit, self._live = folder, parts, emit, live
        self._attacks = parts.config.attacks
        self._tried: set[tuple[int, int]] = set()

    def handle(self, event: Mapping[str, Any]) -> None:
        """After a round that an attack names: attack the model with which it began. Audits wait for the end."""
        # What a round leaves behind is whole when its checkpoint is written.
        if self._attacks and event.get("event") == "stage" and event.get("stage") == "checkpoint":
            self._make(int(event["round"]), {"rounds": self._parts.config.run.rounds})

    def finish(self, result: Mapping[str, Any]) -> None:
        """At the end of the run: all attacks that name no round, audits, and what an interrupted run did not come to."""
        self._make(None, result)
        for round in sorted({r for attack in self._attacks for r in _of(attack)[0] if r <= int(result["rounds"])}):
            self._make(round, result)

    def _make(self, round: int | None, result: Mapping[str, Any]) -> None:
        for number, attack in enumerate(self._attacks):
            rounds, vantage = _of(attack)
            reads = self._parts.registry.build("attack", attack).reads_view
            if not reads and round is None:
                due: list[int | None] = [*rounds] or [None]
            else:
                due = [round] if reads and (round in rounds if round is not None else not rounds) else []
            for one in due:
                if round is not None and ((number, round) in self._tried or self._recorded(attack, vantage, round)):
                    continue
                self._tried.add((number, round or 0))
                try:
                    record = self._record(attack, one, result)
                except Exception as error:
                    # The run is worth more than one attack on it; `pppml attack` can make it later.
                    why = error if isinstance(error, PppmlError) else f"{type(error).__name__}: {error}"
                    text = f"the attack {attack.use} could not be made: {why}"  # type: ignore[attr-defined]
                    self._emit({"event": "warning", "round": one or result["rounds"], "text": text})
                else:
                    about = {name: record[name] for name in ("attack", "vantage", "round", "outcome", "reason")}
                    self._emit({"event": "attack", **about})

    def _recorded(self, attack: ComponentConfig, vantage: str, round: int) -> bool:
        return record_path(self._folder, attack.use, vantage, round).exists()  # type: ignore[attr-defined]

    def _record(self, attack: ComponentConfig, round: int | None, result: Mapping[str, Any]) -> dict[str, Any]:
        target = Target(self._folder, result, self._parts, self._live)
        who = target.vantage(_of(attack)[1])
        if not self._parts.registry.build("attack", attack).reads_view:
            return target.audit(attack, who, round)
        how = target.recorded if needs_recording(self._parts, attack) else target.attack
        return how([Cell(attack, who)], round, Effort())[0]


def _of(attack: ComponentConfig) -> tuple[list[int], str]:
    return list(getattr(attack, "rounds", ())), str(getattr(attack, "vantage", "server"))

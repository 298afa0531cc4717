"""A run from first round to last: rounds with their retries, checkpoints, resume, result."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from pppml_core.errors import BudgetSpent, CheckpointError, RoundAborted, RoundLost, RunFailed
from pppml_core.federation import checkpoint
from pppml_core.federation.evaluation import Scores
from pppml_core.federation.files import remove_unfinished, write_atomic
from pppml_core.federation.ledger import Ledger
from pppml_core.federation.round import hold_round
from pppml_core.federation.rundir import RunDir
from pppml_core.federation.scoring import Scoring
from pppml_core.federation.server import Server, ServerState
from pppml_core.federation.stageclock import StageClock
from pppml_core.federation.terms import START_BYTES
from pppml_core.interfaces.privacy import CONDITIONS, plain_epsilon
from pppml_core.learning.arrays import sha256_of_state, to_torch
from pppml_core.randomness import entropy
from pppml_core.wire.messages import Exchange
from pppml_core.wire.transcript import Transcript

Emit = Callable[[Mapping[str, Any]], None]


class Conductor:
    """Conducts one run over a server, a run directory and a transcript."""

    def __init__(self, server: Server, folder: RunDir, transcript: Transcript, clock: StageClock, emit: Emit) -> None:
        self._server, self._folder, self._transcript, self._clock, self._emit = server, folder, transcript, clock, emit
        self._config = server.parts.config
        self._spec = server.parts.spec
        self._metric = (self._config.run.stop and self._config.run.stop.metric) or self._spec.primary_metric
        self._ledger = Ledger(folder.path / "ledger.jsonl")
        self._scoring = Scoring(server, folder, self._metric, emit)

    def run(self) -> dict[str, Any]:
        """All rounds that are still to be held, then the result. Raises what stopped it; what was done can be resumed."""
        first = self._resume() + 1
        run = self._config.run
        self._emit({"event": "run-started", **self._about(first)})
        for round in range(first, run.rounds + 1):
            if self._server.state.stopped:
                break
            self._hold(round)
        return self._finish()

    def _about(self, first: int) -> dict[str, Any]:
        run = self._config.run
        about = {"name": run.name, "folder": str(self._folder.path), "rounds": run.rounds, "first_round": first}
        plan = self._folder.read_json("plan.json") or {}
        steps = plan.get("training", {}).get("steps", {})
        return {**about, "sites": list(self._server.sites), "steps": steps, "headline": plan.get("headline", "")}

    def _hold(self, round: int) -> None:
        """One round with its retries, its evaluation and its checkpoint."""
        state, run = self._server.state, self._config.run
        began = time.perf_counter()
        self._charge(round)
        state.survivors[str(round)] = []
        metrics: Mapping[str, float] = {}
        lost: RunFailed | None = None
        try:
            metrics = self._insist(round)
            self._watch(round, metrics)
            due = round % run.evaluate_every == 0 or round == run.rounds
            if due and run.metrics != "none" and state.survivors[str(round)]:
                self._scoring.validate(round)
        except RunFailed as error:
            if not isinstance(error.__cause__, RoundLost):
                raise
            lost = error  # no attempt of this sum can succeed any more: a resumed run goes on after this round
        # Told before the checkpoint is written, which records how long the event file is: a resumed run must not lose it.
        done = {"event": "round-finished", "round": round, "seconds": time.perf_counter() - began}
        self._emit({**done, "survivors": state.survivors[str(round)], "training": metrics, **self._told_spent(round)})
        self._checkpoint(round)
        if lost is not None:
            raise lost

    def _insist(self, round: int) -> Mapping[str, float]:
        """What the round gives, held again as ``run.on_abort`` says; nothing where it is skipped. Raises RunFailed where the run stops.

        A lost sum is never tried again: the run goes on without it, or stops with ``on_abort: stop``.
        """
        run = self._config.run
        for left in reversed(range(1 + (run.retries if run.on_abort == "retry" else 0))):
            try:
                return hold_round(self._server, round)
            except RoundAborted as error:
                lost = isinstance(error, RoundLost)
                following = "stop" if run.on_abort == "stop" else "skip" if lost or run.on_abort == "skip" else "retry" if left else "stop"
                event = {"event": "round-aborted", "round": round, "attempt": self._server.attempts.get(round, 0), "reason": str(error)}
                self._emit({**event, "next": following, "lost": lost})
                if following == "stop":
                    what = "the next round follows" if lost else "what was done so far is kept"
                    hint = f"{what}: resume with --resume {self._folder.path}"
                    raise RunFailed(f"the round ended without a sum: {error.message}", place=f"round {round}", hint=hint) from error
                if following == "skip":
                    break
        return {}

    def _charge(self, round: int) -> None:
        """Stop before a round that would exceed the budget; note the public charge before anything noisy is asked for."""
        privacy = self._server.privacy
        if (entry := privacy.charge(round)) is None:
            return
        charges = [c for r in range(1, round + 1) if (c := privacy.charge(r)) is not None]
        if not privacy.affords(charges):
            text = f"round {round} would bring epsilon to {privacy.spent(charges):.4g}, above the claim: {privacy.statement.words()}"
            raise BudgetSpent(text, place=f"round {round}")
        self._ledger.append({"round": round, **entry})

    def _spent(self, rounds: int) -> float | None:
        """Epsilon of the rounds that were held, or of the fullest of the sites' ledgers that lie here; None where nothing is charged.

        A site is charged anew for what it had to make anew, so its ledger may hold more than one charge a round.
        """
        privacy = self._server.privacy
        held = [c for r in range(1, rounds + 1) if (c := privacy.charge(r)) is not None]
        if not held:
            return None
        ledgers = [Ledger(self._folder.sites / site / "ledger.jsonl").entries() for site in self._server.sites]
        fullest = max((entries for entries in ledgers if entries), key=len, default=[])
        found = [spent for charges in (held, fullest) if (spent := privacy.spent(charges)) is not None]
        return max(found, default=None)

    def _told_spent(self, round: int) -> dict[str, Any]:
        """Epsilon so far, with everything it means nothing without."""
        spent, said = plain_epsilon(self._spent(round)), self._server.privacy.statement.to_dict()
        return {"epsilon": spent, **({name: said[name] for name in CONDITIONS} if spent is not None else {})}

    def _watch(self, round: int, metrics: Mapping[str, float]) -> None:
        saturated = metrics.get("saturated", 0.0)
        if saturated > 0:
            text = f"round {round}: about {100 * saturated:.1g} % of the update's coordinates were beyond their range and were cut"
            self._emit({"event": "warning", "round": round, "text": f"{text}; raise encoding.range or encoding.start"})

    def _checkpoint(self, round: int) -> None:
        began = time.perf_counter()
        state = self._server.state
        state.seconds = self._clock.seconds()
        state.bests = [r for r in dict.fromkeys((*state.bests[-1:], state.best_round)) if r is not None]
        lengths = {**self._folder.lengths(), "transcript": self._transcript.length()}
        checkpoint.save(self._folder.checkpoints, round, {"server": state.to_plain(), "lengths": lengths})
        checkpoint.drop_best(self._folder.checkpoints, state.bests)
        checkpoint.drop_sums(self._folder.checkpoints, before=round)
        self._emit(
            {"event": "stage", "round": round, "stage": "checkpoint", "sent": 0, "received": 0, "seconds": time.perf_counter() - began}
        )

    def _resume(self) -> int:
        """Go back to the newest checkpoint that all parties have; the round it was made after (0: from the beginning)."""
        server, folder = self._server, self._folder
        for place in (folder.path, folder.checkpoints):
            remove_unfinished(place)
        hello = Exchange("hello", {s: {} for s in server.sites}, kind="hello", common={"start": entropy(START_BYTES)})
        outcome = server.perform(hello, 0, 1, server.manifest)
        for reply in outcome.replies.values():
            server.note_attempts(reply.get("attempts", {}))
        for site, reason in outcome.lost.items():
            # A site that cannot read its own folder must not begin anew in silence. One that is only out of reach is lost as in any round.
            if reason.startswith("it failed: "):
                raise CheckpointError(
                    reason.removeprefix("it failed: "), place=f"site {site}", hint="nothing was changed; put this right first"
                )
        # The oldest state each site can go back to; one without any has not missed a round.
        oldest = [min(told) for reply in outcome.replies.values() if (told := [r for r in reply.get("rounds", ()) if type(r) is int])]
        held = checkpoint.rounds(folder.checkpoints)
        if not held:
            folder.cut_back({})
            self._transcript.truncate(0)
            return 0
        common = [r for r in held if r >= max(oldest, default=0)]
        if not common:
            raise CheckpointError("no checkpoint fits what the sites still hold", place=str(folder.checkpoints), hint="start a new run")
        found = checkpoint.load(folder.checkpoints, common)
        assert found is not None
        round, state, warnings = found
        server.state = ServerState.from_plain(state["server"])
        trained = {site for survivors in server.state.survivors.values() for site in survivors}
        for site, reply in outcome.replies.items():
            if site in trained and not reply.get("rounds"):
                text = f"it took part in earlier rounds and holds nothing of them: {folder.sites / site} is gone or empty"
                raise CheckpointError(text, place=f"site {site}", hint="put its folder back, or start a new run")
        folder.cut_back(state["lengths"])
        self._transcript.truncate(state["lengths"]["transcript"])
        self._clock.go_on_from(server.state.seconds)
        for text in warnings:
            self._emit({"event": "warning", "text": text})
        return round

    def _finish(self) -> dict[str, Any]:
        """Score the selected weights on test data, for the first time; write model and result."""
        server, run = self._server, self._config.run
        state = server.state
        last = max((int(r) for r in state.survivors), default=0)
        chosen, weights = last, state.weights
        if run.select == "best-validation" and state.best_round is not None and state.best_round != last:
            chosen = state.best_round
            weights = to_torch(checkpoint.load_best(self._folder.checkpoints, chosen))
        from safetensors.torch import save

        full = {**server.parts.initial_state, **weights}
        if server.parts.personalization.shares:  # else there is no model but each site's own
            write_atomic(self._folder.path / "model.safetensors", save({n: t.contiguous() for n, t in full.items()}))
        scores, missing = self._scoring.final(last, chosen, weights)
        digest = sha256_of_state(full) if server.parts.personalization.shares else self._sites_digest()
        result = self._result(chosen, last, digest, scores, missing)
        self._folder.write_json("result.json", result)
        checkpoint.drop_sums(self._folder.checkpoints)
        self._emit({"event": "run-finished", "result": result})
        return result

    def _sites_digest(self) -> str:
        """SHA-256 over the sites' own models, where nothing is shared; over those whose folders lie here."""
        from safetensors.torch import load_file

        digest = hashlib.sha256()
        for site in self._server.sites:
            path = self._folder.sites / site / "personalized.safetensors"
            digest.update(f"{site}:{sha256_of_state(load_file(path)) if path.exists() else ''};".encode())
        return digest.hexdigest()

    def _result(self, chosen: int, last: int, digest: str, scores: Scores, missing: list[str]) -> dict[str, Any]:
        config, state = self._config, self._server.state
        plan = self._folder.read_json("plan.json") or {}
        brackets = {}
        for kind in ("global", "personalized"):
            sites = {
                s: {m: _number(v) for m, v in values.items()} for (s, split, k), values in scores.items() if (split, k) == ("test", kind)
            }
            names = next(iter(sites.values()), {})
            brackets[kind] = {"mean": {m: _mean([v[m] for v in sites.values()]) for m in names}, "sites": sites}
        transcript = self._transcript
        seconds = self._clock.seconds()
        return {
            "name": config.run.name,
            "rounds": last,
            "seed": config.run.seed,
            "selected_round": chosen,
            "stopped": state.stopped,
            "model_sha256": digest,
            "survivors": state.survivors,
            "metrics": brackets,
            "not_evaluated": missing,
            "validation": {"metric": self._metric, "value": state.validation.get(str(chosen))},
            "bytes": {"up": transcript.total("up"), "down": transcript.total("down"), "by_stage": transcript.by_stage()},
            "seconds": {"total": seconds.pop("total"), "by_stage": seconds},
            "privacy": {**self._server.privacy.statement.to_dict(), "spent": plain_epsilon(self._spent(last))},
            "guarantees": plan.get("guarantees", {}),
            "versions": plan.get("versions", {}),
        }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: list[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return sum(defined) / len(defined) if defined else None

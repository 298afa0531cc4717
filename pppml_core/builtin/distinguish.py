"""``distinguish``: do the messages of a secure sum tell which of two sites gave which of two updates?

Pictures made of ciphertext show noise, of a broken scheme too. Here the run's own secure sum is held many times over given numbers, in two
worlds: two sites' numbers are swapped, so the sum is the same. The adversary at the vantage is given the bytes that went through its hands,
learns on half of the sums which statistics differ, and names the world of the others. As a control, all parties together, who hold every
key, must be able to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.builtin.configs import DistinguishConfig
from pppml_core.engines.rehearsal import Rehearsal, numbers_for
from pppml_core.errors import ConfigError
from pppml_core.evidence.game import Game, distinguishing_game
from pppml_core.evidence.recording import Passage, Recorder
from pppml_core.evidence.view import coalition, heard_by
from pppml_core.interfaces.aggregation import Session
from pppml_core.interfaces.attack import AdversaryView, Attack, AttackContext, Outcome, Vantage, Verdict
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import encode_message
from pppml_core.wire.messages import SERVER

Numbers = npt.NDArray[Any]
_OUTCOMES: dict[str, Outcome] = {
    "told_apart": "recovered",
    "no_better_than_guessing": "not_shown_to_leak",
    "inconclusive": "inconclusive",
}


class Distinguish(Attack):
    """The attack of that name. It brings its own numbers, so it reads no view of the run."""

    reads_view = False
    config: DistinguishConfig

    def run(self, view: AdversaryView, budget: Any, ctx: AttackContext) -> Verdict:
        """Hold ``config.sums`` sums of ``config.length`` numbers with the run's aggregator and cohort."""
        sites = tuple(ctx.setting.examples)
        free = [s for s in sites if s not in ctx.vantage.sites]
        if ctx.vantage.neighbours:
            free = [s for s in free if s in ctx.vantage.neighbours] + [s for s in free if s not in ctx.vantage.neighbours]
        value = ValueSpec(self.config.length, "integer", 2 ** (ctx.config.encoding.bits - 1) - 1)
        if not ctx.parts.personalization.shares:
            return Verdict("not_applicable", "nothing is summed in this run, so there are no messages of a sum")
        if len(free) < 2:
            return Verdict("not_applicable", "fewer than two sites are outside of the coalition, so it can subtract its own numbers")
        if misfits := ctx.parts.aggregator.misfits(value, sites):
            return Verdict("not_applicable", misfits[0])
        sums = _Sums(ctx.parts.aggregator.plan(value, sites), ctx.vantage, (free[0], free[-1]), self.config.sums // 2)
        try:
            game = distinguishing_game(sums.make, self.config.sums, self.config.seed, sums.told_with_all_keys)
        except ConfigError as error:
            return Verdict("not_applicable", error.message)
        return _verdict(game, sums)


class _Sums:
    """Sums in two worlds, and what the adversary sees of each."""

    def __init__(self, session: Session, vantage: Vantage, swapped: tuple[str, str], learned: int) -> None:
        self.session, self.vantage, self.swapped = session, vantage, swapped
        self.values: dict[str, Numbers] = {s: numbers_for(session.value, i) for i, s in enumerate(session.cohort)}
        #: which world each sum was in by the parties' own keys, in order; those that are learned from are not asked for.
        self._opened: list[int] = []
        self._next = learned

    def make(self, world: int) -> bytes:
        """One sum; the bytes of all messages that went through the adversary's hands, in order."""
        one, other = self.swapped
        given = {**self.values, one: self.values[other], other: self.values[one]} if world else self.values
        recorder = Recorder()
        contributions = {site: partial(_given, numbers) for site, numbers in given.items()}
        rehearsal = Rehearsal(self.session, contributions, transcript=recorder, remember=True)
        rehearsal.run()
        heard = heard_by(self.vantage, coalition(self.vantage, recorder.passages), recorder.passages)
        self._opened.append(self._open(recorder.passages, rehearsal.remembered()))
        return b"".join(encode_message(message) for message in heard)

    def told_with_all_keys(self, _: bytes) -> int:
        """The world of the next tested sum, from what the parties can decode who work together."""
        self._next += 1
        return self._opened[self._next - 1]

    def _open(self, passages: list[Passage], states: Mapping[str, Mapping[str, Any]]) -> int:
        """Everybody but one of the swapped sites works together: its numbers follow, and with them the world.

        Either is tried: where the one that is left out is a ring's initiator, nobody in the coalition has the ring's key.
        """
        for left_out, partner in (self.swapped, self.swapped[::-1]):
            members = tuple(p for p in (*self.session.cohort, SERVER) if p != left_out)
            held = {m: states[m] for m in members if m in states}
            attempt = {"number": 1, "cohort": self.session.cohort, "states": held, "history": {}}
            messages = [p.message for p in passages if not set(p.parties).isdisjoint(members)]
            view = {"parties": members, "messages": messages, "states": held, "attempts": [attempt]}
            for found in self.session.exposed(view):
                if found.sites == (left_out,):
                    return int(_nearer(found.value, self.values[partner], self.values[left_out]))
        return 0


def _nearer(found: Numbers, one: Numbers, other: Numbers) -> bool:
    """Whether ``found`` is nearer to ``one``."""
    wide = found.astype(np.float64)
    return bool(np.abs(wide - one).sum() < np.abs(wide - other).sum())


def _given(numbers: Numbers) -> Numbers:
    return numbers


def _verdict(game: Game, sums: _Sums) -> Verdict:
    one, other = sums.swapped
    holder = game.key_holder
    about = f"Two worlds in which {one} and {other} swap their numbers. "
    return Verdict(
        _OUTCOMES[game.result],
        about + game.words(),
        {"accuracy": _plain(game.accuracy), "told_by": game.told_by, "swapped": list(sums.swapped)},
        {"what": f"all parties but {one} or {other} together, with their keys", "passed": holder is not None and holder.low > 0.5}
        | ({} if holder is None else {"accuracy": _plain(holder)}),
        {"what": "coin flips", "accuracy": 0.5},
        {"sums": game.accuracy.n},
    )


def _plain(found: Any) -> dict[str, float]:
    return {"rate": found.estimate, "low": found.low, "high": found.high, "n": found.n}

"""Attacks on staged rounds, cell by cell: the same victims, controls and blind guesses for all.

A cell is one attack from one vantage in one round of one run. For each victim the round is held once, and every cell is given what its
vantage saw of it. Beside it the same attack is tried with the defence off (does it work at all?) and on a random update (does its score
mean anything?). The attack runs in a process that is given the view and public knowledge, never the truth. Controls run in another one: no
process that was shown a victim without the defence answers for one with it.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from queue import Queue
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PppmlError
from pppml_core.evidence.attacker import Attacker
from pppml_core.evidence.claims import raw
from pppml_core.evidence.controls import randomized, undefended
from pppml_core.evidence.deciding import controls_needed
from pppml_core.evidence.found import OWN, Cell, Control, Effort, Found, Picture, trimmed
from pppml_core.evidence.knowledge import known
from pppml_core.evidence.reading import Reader
from pppml_core.evidence.scoring import Metrics, Truth, blind_scores, score
from pppml_core.evidence.seen import NoSuchParty
from pppml_core.evidence.stage import Stage, Staged
from pppml_core.evidence.victims import Victim, batch_of, draw_victims, public_images
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.vetting import suspicious
from pppml_core.interfaces.attack import AdversaryView, Answer, Arrays, Attack, Images, Knowledge, Training, Vantage
from pppml_core.learning.arrays import to_numpy
from pppml_core.randomness import Seeds

Emit = Callable[[Mapping[str, Any]], None]
ON_THE_SERVER = Vantage("server", server=True)


class Evaluation:
    """Staged attacks on one run at the weights of one of its rounds.

    Args:
        parts: of the run.
        sizes: training examples of each site.
        weights: the shared weights that the round begins with.
        round: counted from 1.
        site: the watched one.
        effort: what is spent.
        live: whether the config holds live objects, so that attacks run in this process.
        controls: of victims, by a name; shared by cells and by runs that differ in nothing but their defence. Filled in.
        reader: see :func:`.lesion_reader`.
    """

    def __init__(
        self,
        parts: Assembly,
        sizes: Mapping[str, int],
        weights: Arrays,
        round: int,
        site: str,
        effort: Effort,
        *,
        live: bool = False,
        emit: Emit = lambda event: None,
        controls: dict[str, Control] | None = None,
        reader: Reader | None = None,
    ) -> None:
        self._reader = reader
        self._parts, self._round, self._weights, self.site, self._effort = parts, round, weights, site, effort
        self._emit, self._live, self._controls = emit, live, {} if controls is None else controls
        topology = parts.registry.build("engine", parts.config.engine).topology
        self.stage = Stage(parts, sizes, topology)
        self._open = Stage(undefended(parts), sizes, topology)
        self._public = public_images(parts, site, effort.seed)

    def run(self, cells: Sequence[Cell], done: Callable[[Found], None] = lambda found: None, ends: float = math.inf) -> list[Found]:
        """All cells, in their order.

        Args:
            cells: which.
            done: is called with each when its last victim was tried.
            ends: no further victim is begun after this time of ``time.monotonic``; a cell that has had too few then is not ``done``.

        """
        found = [Found(cell, self._parts.registry.build("attack", cell.attack)) for cell in cells]
        order = sorted(range(len(found)), key=lambda i: self._kind(found[i]))
        # A process for each of two cores; live objects are this process's alone.
        workers = 1 if self._live else min(2, os.cpu_count() or 1)
        pairs = [_Pair(Attacker(self._parts, self._live), Attacker(self._parts, self._live)) for _ in range(workers)]
        free: Queue[_Pair] = Queue()
        for pair in pairs:
            free.put(pair)
        try:
            with ThreadPoolExecutor(workers) as pool:
                for _, group in groupby(order, key=lambda i: self._kind(found[i])):
                    self._group([found[i] for i in group], pool, free, workers, done, ends)
        finally:
            for pair in pairs:
                pair.close()
        return found

    def _kind(self, one: Found) -> tuple[int, str]:
        """Cells that may share a held round: the same batch, and the same lie, if the server lies."""
        lies = type(one.attack).plant is not Attack.plant
        return one.attack.batch, repr(one.cell.attack) if lies else ""

    def _group(
        self,
        group: list[Found],
        pool: ThreadPoolExecutor,
        free: Queue[_Pair],
        workers: int,
        done: Callable[[Found], None],
        ends: float,
    ) -> None:
        """Rounds are held here, one after another; meanwhile the attackers answer for those that were held before."""
        effort, batch = self._effort, group[0].attack.batch
        counts = [effort.of(one.cell.attack).victims(one.attack) for one in group]
        victims = draw_victims(self._parts, self.site, max(counts), batch, effort.seed, effort.gallery)
        weights = group[0].attack.plant(self._weights, self._knowledge(group[0].attack, victims[0], 1, 0, self.stage))
        pending: deque[tuple[int, Future[list[_Answer]]]] = deque()
        if weights is not self._weights:
            caught = suspicious(weights, to_numpy(self._parts.initial_weights))
            for one in group:
                one.caught, one.lied = caught, True
        # A site may have fewer victims than are asked for.
        waiting = {id(one): min(count, len(victims)) for one, count in zip(group, counts, strict=True)}

        def take(number: int, answers: Sequence[_Answer]) -> None:
            self._take(answers)
            for one in group:
                if id(one) in waiting and (number + 1 >= waiting[id(one)] or not _goes_on(one)):
                    del waiting[id(one)]
                    done(one)

        for number, victim in enumerate(victims):
            wanted = [one for one, count in zip(group, counts, strict=True) if number < count and _goes_on(one)]
            if not wanted or time.monotonic() > ends:
                break
            self._emit({"event": "victim", "number": number + 1, "of": len(victims), "round": self._round})
            batches = {s: batch_of(self._parts, s, batch, self._round, number) for s in self.stage.sites if s != self.site}
            batches[self.site] = victim.batch
            held, open_ = self.stage.hold(self._round, weights, batches, number), _Once(self._open, self._round, weights, batches, number)
            asked = [one for one in (self._ask(one, number, victim, held, open_) for one in wanted) if one is not None]
            pending.append((number, pool.submit(self._answers, asked, free)))
            # Here in this process both would share the random numbers of torch.
            while len(pending) > (0 if self._live else workers):
                first, answered = pending.popleft()
                take(first, answered.result())
        while pending:
            first, answered = pending.popleft()
            take(first, answered.result())

    def _ask(self, one: Found, number: int, victim: Victim, held: Staged, open_: _Once) -> _Asked | None:
        """What an attacker is given of one victim, and what is true; None where this vantage has no view."""
        try:
            seen = held.seen(one.cell.vantage)
        except NoSuchParty as error:
            one.misfit, one.why = error.message, "no_such_party"
            return None
        if self.site in seen.members:
            one.misfit, one.why = OWN, "own"
            return None
        sight = seen.of(self.site)
        among = len(sight.sites) if sight else len(held.cohort)
        knowledge = self._knowledge(one.attack, victim, among, number, self.stage, held, raw(self.stage.privacy, seen, self.site))
        truth = truth_of(victim, held, self.site, one.attack, self._reader)
        question = _Question(AdversaryView(one.cell.vantage, (seen,)), knowledge, truth)
        control = None
        if (name := f"{one.cell.attack!r} {number}") not in self._controls:
            staged = open_.staged
            view = AdversaryView(ON_THE_SERVER, (staged.seen(ON_THE_SERVER),))
            about = self._knowledge(one.attack, victim, 1, number, self._open, staged)
            control = _Question(view, about, truth_of(victim, staged, self.site, one.attack, self._reader))
        return _Asked(one, number, victim, question, name, control)

    def _answers(self, asked: Sequence[_Asked], free: Queue[_Pair]) -> list[_Answer]:
        """Of one victim, by attackers that are free; scored."""
        pair = free.get()
        try:
            blind: dict[str, Any] = {}
            return [self._answer(one, pair, blind) for one in asked]
        finally:
            free.put(pair)

    def _answer(self, asked: _Asked, pair: _Pair, blind: dict[str, Any]) -> _Answer:
        one, question = asked.one, asked.question
        answered = pair.defended.answer(one.cell.attack, question.view, self._effort.of(one.cell.attack).seconds, question.knowledge)
        if answered["misfit"]:
            return _Answer(asked, answered)
        kind = one.attack.answers
        if kind not in blind:
            blind[kind] = blind_scores(kind, question.truth, question.knowledge)
        found = scored(kind, answered, question.truth, question.knowledge, blind[kind])
        if asked.control is not None and asked.name not in self._controls:
            self._controls[asked.name] = self._control(one, asked.control, asked.number, pair.open, blind[kind])
        return _Answer(asked, answered, found, self._controls[asked.name])

    def _control(self, one: Found, control: _Question, number: int, attacker: Attacker, blind: Mapping[str, Metrics]) -> Control:
        """The same attack on the same victim where nothing stands between the step and the server, and on random updates of that size."""
        effort = self._effort.of(one.cell.attack)
        victims = effort.victims(one.attack)
        trials = -(-controls_needed(victims) // victims)
        seen = control.view.last
        drawn = [Seeds(self._effort.seed).generator("random update", number + 1000 * i) for i in range(trials)]
        wrong = [AdversaryView(control.view.vantage, (randomized(seen, generator),)) for generator in drawn]
        scores, broken = list[Metrics](), list[str]()
        if one.attack.answers == "update":  # its best guess is of the round that is attacked
            blind = blind_scores("update", control.truth, control.knowledge)
        for view in (control.view, *wrong):
            answered = attacker.answer(one.cell.attack, view, effort.seconds, control.knowledge)
            score = scored(one.attack.answers, answered, control.truth, control.knowledge, blind)
            if why := answered["misfit"] or answered["error"]:
                broken.append(why)
            if not why or not scores:
                scores.append(score)
        return Control(scores[0], scores[1:], broken)

    def _take(self, answers: Sequence[_Answer]) -> None:
        """Note what came of one victim."""
        for answer in answers:
            asked, one = answer.asked, answer.asked.one
            seen = asked.question.view.last
            one.seen.append(trimmed(seen))
            if answer.answered["misfit"]:
                one.misfit, one.why = answer.answered["misfit"], "misfit" if seen.of(self.site) else "hidden"
                one.unfit += 1
                continue
            one.given_up = one.given_up or bool(answer.answered.get("ended"))
            if answer.answered["error"]:
                one.errors.append(answer.answered["error"])
            who = {"person": asked.victim.person, "look_alikes": asked.victim.look_alikes}
            one.scores.append({**answer.score, **who})
            one.efforts.append(answer.answered["effort"])
            one.alike.append(asked.victim.look_alikes)
            one.control.append({**answer.control.positive, **who})
            one.negative += answer.control.negative
            one.broken += answer.control.broken
            guess, knowledge = answer.answered["guess"], asked.question.knowledge
            if one.attack.answers == "images":  # one for every score
                original = asked.victim.batch
                made = np.asarray(guess.get("images", original.images[:0]))
                one.pictures.append(Picture(original, made, self._public, knowledge.low, knowledge.high))

    def _knowledge(
        self, attack: Attack, victim: Victim, sites: int, number: int, stage: Stage, held: Staged | None = None, noiseless: bool = False
    ) -> Knowledge:
        """``sites``: how many are in the sum that is attacked; ``noiseless``: it is seen before noise is added.

        Only who picks among candidates is given any.
        """
        defence = stage.privacy.defence(self._round, sites)
        if noiseless:
            defence = replace(defence, noise=0.0)
        if held is not None and not held.pipeline.real:
            steps = {t.name: held.pipeline.fixed_point.step(i) for i, t in enumerate(self._parts.shared)}
            defence = replace(defence, grid=steps)
        return known(
            self._parts,
            self.site,
            training=Training(stage.learning_rate(self._round), 1, len(victim.batch)),
            defence=defence,
            public=self._public,
            candidates=victim.candidates if attack.answers == "candidate" else None,
            seed=Seeds(self._effort.seed).integer("attack", number) % 2**31,
        )


def _goes_on(one: Found) -> bool:
    """Whether a further victim can tell anything: not where the first one did not fit, nor where the process died or never answered."""
    return not one.given_up and bool(one.scores or not one.misfit)


@dataclass(frozen=True)
class _Pair:
    """``defended`` never answers for a view without the defence, so that nothing it may have kept of one helps it."""

    defended: Attacker
    open: Attacker

    def close(self) -> None:
        """End both."""
        self.defended.close()
        self.open.close()


@dataclass(frozen=True)
class _Question:
    view: AdversaryView
    knowledge: Knowledge
    truth: Truth


@dataclass(frozen=True)
class _Asked:
    """One victim of one cell; ``control``: the same in the open, where no other cell has asked it."""

    one: Found
    number: int
    victim: Victim
    question: _Question
    name: str
    control: _Question | None


_NOTHING = Control({})


@dataclass(frozen=True)
class _Answer:
    asked: _Asked
    answered: Mapping[str, Any]
    score: Metrics = field(default_factory=dict)
    control: Control = _NOTHING


@dataclass
class _Once:
    """A round that is held when it is first asked for."""

    stage: Stage
    round: int
    weights: Arrays
    batches: Mapping[str, Images]
    number: int
    _held: Staged | None = None

    @property
    def staged(self) -> Staged:
        """The round."""
        if self._held is None:
            self._held = self.stage.hold(self.round, self.weights, self.batches, self.number)
        return self._held


def truth_of(victim: Victim, held: Staged, site: str, attack: Attack, reader: Reader | None = None) -> Truth:
    """What is known of a held round to whoever staged it."""
    update = mean = None
    tolerance = 0.0
    if attack.answers == "update":
        own = held.pipeline.decode(held.contributions[site])[0]
        every = [held.pipeline.decode(values)[0] for values in held.contributions.values()]
        update = flat(own)
        mean = np.mean([flat(one) for one in every], axis=0)
        tolerance = float(max(held.pipeline.fixed_point.step(i) for i in range(len(held.pipeline.ranges)))) if held.pipeline.ranges else 0.0
    gallery = victim.candidates.images if len(victim.batch) == 1 else None
    places = (victim.place,) if gallery is not None else ()
    return Truth(victim.batch, gallery, places, victim.place, update=update, mean_update=mean, tolerance=tolerance, reader=reader)


def scored(kind: Answer, answered: dict[str, Any], truth: Truth, knowledge: Knowledge, blind: Mapping[str, Metrics]) -> Metrics:
    """:func:`.score` of an answer; one that cannot be scored is noted in its ``error``, and says nothing."""
    try:
        return score(kind, answered["guess"], truth, knowledge, {kind: blind})
    except (PppmlError, TypeError, ValueError) as error:
        answered["error"], answered["guess"] = f"its answer cannot be scored: {error}", {}
        return score(kind, {}, truth, knowledge, {kind: blind})


def flat(tensors: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """All tensors one after another, in order of name."""
    return np.concatenate([np.asarray(tensors[name], np.float64).ravel() for name in sorted(tensors)])

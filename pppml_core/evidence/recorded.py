"""Attacks on a run as it happened: what went over the wire up to one round, with all images that the sites trained on.

An attack that uses several rounds (:attr:`.Attack.rounds`) is shown every one up to the attacked one, as the adversary was. With the
defence off, as a control, the adversary would have the sites' own updates of these rounds: they are made again from the run's seeds, with
plain gradients, each at the weights its round began with. Members are images the site trained on; the others are held-out images of the
same site, on which nobody did. Of a patient one image is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import ConfigError
from pppml_core.evidence.attacker import Attacker
from pppml_core.evidence.claims import raw
from pppml_core.evidence.controls import randomized, undefended
from pppml_core.evidence.deciding import controls_needed
from pppml_core.evidence.evaluate import Emit, scored
from pppml_core.evidence.found import OWN, Cell, Effort, Found, trimmed
from pppml_core.evidence.knowledge import known
from pppml_core.evidence.reading import lesion_reader
from pppml_core.evidence.rounds import weights_before
from pppml_core.evidence.scoring import Truth, blind_scores
from pppml_core.evidence.seen import NoSuchParty
from pppml_core.evidence.victims import held_out_victims, images_of, public_images
from pppml_core.evidence.view import read_view
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.trainer import plain_rule
from pppml_core.interfaces.attack import AdversaryView, Answer, Arrays, Images, Knowledge, Seen, Sight, Training
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.interfaces.task import Split
from pppml_core.learning.arrays import load_state, to_torch
from pppml_core.learning.training import LocalTraining, learning_rate_factor, steps_per_round
from pppml_core.randomness import Seeds, seeded

#: images of a site that are asked about, members and others each, no two of one patient.
ASKED = 100


class Recorded:
    """Attacks on a recorded run, as it was after one of its rounds.

    Args:
        folder: of the run, with ``run.transcript: secrets``.
        parts: of the run.
        sizes: training examples of each site.
        round: counted from 1.
        site: the watched one.
        effort: what is spent.
        live: whether the config holds live objects.
    """

    def __init__(
        self,
        folder: Path,
        parts: Assembly,
        sizes: Mapping[str, int],
        round: int,
        site: str,
        effort: Effort,
        *,
        live: bool = False,
        emit: Emit = lambda event: None,
    ) -> None:
        self._folder, self._parts, self._sizes, self._round, self.site = folder, parts, sizes, round, site
        self._effort, self._live, self._emit = effort, live, emit
        self.privacy = parts.mechanism.plan(parts.privacy_setting(sizes))
        self._public = public_images(parts, site, effort.seed)
        #: what there is to know of the defence where it is off.
        self._undefended = open_plan(parts, sizes).defence(round, 1)
        #: round -> every site's plain update, and the weights it was made at.
        self._made: dict[int, tuple[Arrays, Mapping[str, Sight]]] = {}

    def run(self, cells: Sequence[Cell]) -> list[Found]:
        """All cells, in their order."""
        found = []
        # No process that was shown a round without the defence answers for one with it.
        with Attacker(self._parts, self._live) as defended, Attacker(self._parts, self._live) as controls:
            for cell in cells:
                one = Found(cell, self._parts.registry.build("attack", cell.attack))
                found.append(one)
                one.misfit = self._misfit(one)
                if one.misfit:
                    one.why = "misfit"
                    continue
                try:
                    first = 1 if one.attack.rounds == "all" else self._round
                    view = read_view(self._folder, self._parts, cell.vantage, self._round, first=first)
                except ConfigError as error:
                    one.misfit, one.why = str(error), "no_such_party" if isinstance(error, NoSuchParty) else "misfit"
                    continue
                if self.site in view.last.members:
                    one.misfit, one.why = OWN, "own"
                    continue
                self._one(one, view, defended, controls)
        return found

    def _misfit(self, one: Found) -> str:
        if one.attack.answers in ("labels", "area", "update"):
            return "of a recorded round it is not scored what an attack says of all its images together; let one be staged"
        return ""

    def _one(self, one: Found, view: AdversaryView, defended: Attacker, controls: Attacker) -> None:
        sight, effort = view.of(self.site), self._effort.of(one.cell.attack)
        base = self._knowledge(len(sight.sites) if sight else len(self._sizes), raw(self.privacy, view.last, self.site))
        trials = self._trials(one, base)
        wrongs = wrong_updates(one.attack.answers, trials)
        open_view: AdversaryView | None = None
        for number, (knowledge, truth, who) in enumerate(trials):
            self._emit({"event": "victim", "number": number + 1, "of": len(trials), "round": self._round})
            answered = defended.answer(one.cell.attack, view, effort.seconds, knowledge)
            if answered["misfit"]:
                one.misfit, one.why = answered["misfit"], "misfit" if sight else "hidden"
                one.seen.append(trimmed(view.last))
                return
            blind = blind_scores(one.attack.answers, truth, knowledge)
            found = scored(one.attack.answers, answered, truth, knowledge, blind)
            if answered["error"]:
                one.errors.append(answered["error"])
            one.scores.append({**found, **who})
            one.efforts.append(answered["effort"])
            one.seen.append(trimmed(view.last))
            open_view = open_view or self.control(view)
            asked = [(open_view, replace(knowledge, defence=self._undefended), one.control)]
            for i in range(wrongs):
                generator = Seeds(self._effort.seed).generator("random round", number + 1000 * i)
                asked.append((random_view(view, generator), knowledge, one.negative))
            for other, told, kept in asked:
                again = controls.answer(one.cell.attack, other, effort.seconds, told)
                score = scored(one.attack.answers, again, truth, told, blind)
                if why := again["misfit"] or again["error"]:
                    one.broken.append(why)
                if not why or kept is one.control:
                    kept.append({**score, **who})
            one.given_up = bool(answered.get("ended"))
            if one.given_up:
                return

    def _knowledge(self, sites: int, exact: bool) -> Knowledge:
        """``sites``: how many are in the sum that is attacked; ``exact``: it is seen before noise is added."""
        training, run = self._parts.config.training, self._parts.config.run
        rate = training.optimizer.lr * learning_rate_factor(training, self._round, run.rounds)
        steps = steps_per_round(training, self._sizes[self.site], self._parts.personalization.batches_per_step, self.privacy.sample_rate)
        defence = self.privacy.defence(self._round, sites)
        return known(
            self._parts,
            self.site,
            training=Training(rate, steps, min(training.batch_size, self._sizes[self.site]), exact=False),
            defence=replace(defence, noise=0.0) if exact else defence,
            public=self._public,
            seed=self._effort.seed,
        )

    def _trials(self, one: Found, base: Knowledge) -> list[tuple[Knowledge, Truth, Mapping[str, Any]]]:
        """What is asked, what is true, and of whom, where it is of somebody in particular."""
        parts, site, effort = self._parts, self.site, self._effort.of(one.cell.attack)
        nobody = Truth(Images(base.public.images[:1], base.public.targets[:1]))
        if one.attack.answers == "members":
            queries, inside = self._members(site)
            return [(replace(base, queries=queries), replace(nobody, members=inside), {})]
        if one.attack.answers == "site":
            asked = [self._images(s, self._one_each(s, "train")[:ASKED]) for s in base.sites]
            queries = Images(np.concatenate([a.images for a in asked]), np.concatenate([a.targets for a in asked]))
            whose = np.repeat(np.arange(len(asked)), [len(a) for a in asked])
            order = Seeds(effort.seed).generator("queries").permutation(len(queries))
            known_from = {s: self._images(s, self._one_each(s, "validation")[:ASKED]) for s in base.sites}
            told = replace(base, queries=Images(queries.images[order], queries.targets[order]), sites_public=known_from)
            return [(told, replace(nobody, sites=whose[order]), {})]
        reader = lesion_reader(self._folder, parts, parts.config.run.rounds)
        victims = held_out_victims(parts, site, effort.victims(one.attack), effort.seed, effort.gallery)
        one.alike += [v.look_alikes for v in victims]
        return [
            (
                replace(base, candidates=v.candidates if one.attack.answers == "candidate" else None),
                Truth(v.batch, v.candidates.images, (v.place,), v.place, reader=reader),
                {"person": v.person, "look_alikes": v.look_alikes},
            )
            for v in victims
        ]

    def _members(self, site: str) -> tuple[Images, npt.NDArray[np.bool_]]:
        """Training images of the site and as many others of it, all of different patients, in an order that says nothing."""
        drawn = self._one_each(site, "train", "test", "validation")
        inside = [place for place in drawn if place[0] == "train"]
        outside = [place for place in drawn if place[0] != "train"]
        few = min(len(inside), len(outside), ASKED)
        chosen, order = inside[:few] + outside[:few], Seeds(self._effort.seed).generator("members", site).permutation(2 * few)
        return self._images(site, [chosen[i] for i in order]), np.arange(2 * few)[order] < few

    def _one_each(self, site: str, *splits: Split) -> list[tuple[Split, int]]:
        """An image of every patient in these parts of a site, in an order drawn by the seed. Images of one patient are no independent
        trials: a network may do well on all of them for a reason that is the patient's alone.
        """
        data = self._parts.load(site)
        held = [(split, i, data.part(split).groups[i].item()) for split in splits for i in range(len(data.part(split)))]
        order = Seeds(self._effort.seed).generator("asked", site, *splits).permutation(len(held))
        first: dict[object, tuple[Split, int]] = {}
        for split, i, patient in (held[n] for n in order):
            first.setdefault(patient, (split, i))
        return list(first.values())

    def _images(self, site: str, places: Sequence[tuple[Split, int]]) -> Images:
        data = self._parts.load(site)
        return images_of([(data.part(split), i) for split, i in places])

    def control(self, view: AdversaryView) -> AdversaryView:
        """The same rounds where every site's own update, made with plain gradients, is in the open."""
        return AdversaryView(view.vantage, tuple(self._open(seen) for seen in view.rounds))

    def _open(self, seen: Seen) -> Seen:
        if seen.round not in self._made:
            weights = weights_before(self._folder, self._parts, seen.round, self._parts.config.run.rounds)
            updates = {site: Sight((site,), self.update(site, weights, seen.round), float(self._sizes[site])) for site in self._sizes}
            self._made[seen.round] = weights, updates
        weights, made = self._made[seen.round]
        # Who took no part in a round gives no update of it, with or without a defence.
        every = {site: sight for site, sight in made.items() if site in seen.cohort}
        own: Arrays = every[self.site].update if self.site in every else {}
        after = {n: (np.asarray(w) + own[n]).astype(np.asarray(w).dtype) if n in own else w for n, w in weights.items()}
        return replace(seen, weights=weights, sights=tuple(every.values()), after=after, messages=(), secrets={})

    def update(self, site: str, weights: Arrays, round: int) -> dict[str, npt.NDArray[np.float32]]:
        """A site's update of a round by the run's own rule and order of examples, without privacy mechanism."""
        parts, model = self._parts, self._parts.model
        load_state(model, to_torch(dict(weights)), parts.initial_personal)
        examples, run = parts.load(site).train, parts.config.run
        data = LocalTraining(examples, parts.config.training, parts.seeds, site=site, round=round, rounds=run.rounds)
        with seeded(parts.seeds.integer("round", round, "site", site, "update")):
            state = parts.personalization.init(model)
            made, _ = parts.personalization.local_update(model, data, plain_rule(parts, examples), state)
        return {n: made.delta[n].numpy().astype(np.float32) for n in weights if n in made.delta}


def wrong_updates(answers: Answer, trials: Sequence[tuple[Knowledge, Truth, Mapping[str, Any]]]) -> int:
    """How many random updates each trial is tried on, so that a success on all can be told from chance.

    Members are compared query by query with one random update. A list of queries of sites is as many trials as it has queries.
    """
    if answers == "members":
        return 1
    patients = {who["person"] for *_, who in trials if "person" in who}
    many = len(patients) or sum(len(asked.queries or ()) for asked, *_ in trials)
    made = sum(1 if asked.queries is None else len(asked.queries) for asked, *_ in trials)
    return -(-controls_needed(many) // made) if many else 1


def random_view(view: AdversaryView, generator: np.random.Generator) -> AdversaryView:
    """:func:`.randomized`, round by round; the models of later rounds are the first one and the random steps, each as large as the real."""
    rounds, model = list[Seen](), dict[str, npt.NDArray[Any]]()
    for seen in view.rounds:
        if model and seen.weights:
            moved = {n: np.asarray(model[n]) + (np.asarray(a) - np.asarray(seen.weights[n])) for n, a in seen.after.items()}
            seen = replace(seen, weights=model, after=moved)
        rounds.append(randomized(seen, generator))
        model = dict(rounds[-1].after or rounds[-1].weights) or model
    return AdversaryView(view.vantage, tuple(rounds))


def open_plan(parts: Assembly, sizes: Mapping[str, int]) -> PrivacyPlan:
    """The plan of privacy with the defence off."""
    bare = undefended(parts)
    return bare.mechanism.plan(bare.privacy_setting(sizes))

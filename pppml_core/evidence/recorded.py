"""Attacks on a round of the run as it happened: what went over the wire then, with all images that the sites trained on.

With the defence off, as a control, the adversary would have the watched site's own update of that round: it is made again from the run's
seeds, with plain gradients. Members are images the site trained on; the others are held-out images of the same site, on which nobody did.
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
from pppml_core.evidence.claims import before_noise
from pppml_core.evidence.controls import randomized, undefended
from pppml_core.evidence.evaluate import Emit, scored
from pppml_core.evidence.found import OWN, Cell, Effort, Found, trimmed
from pppml_core.evidence.knowledge import known
from pppml_core.evidence.reading import lesion_reader
from pppml_core.evidence.scoring import Truth, blind_scores
from pppml_core.evidence.seen import NoSuchParty
from pppml_core.evidence.victims import held_out_victims, images_of, public_images
from pppml_core.evidence.view import read_view
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.trainer import plain_rule
from pppml_core.interfaces.attack import AdversaryView, Arrays, Images, Knowledge, Sight, Training
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.learning.arrays import load_state, to_torch
from pppml_core.learning.training import LocalTraining, learning_rate_factor, steps_per_round
from pppml_core.randomness import Seeds, seeded

#: images of a site that are asked about, members and others each.
ASKED = 100


class Recorded:
    """Attacks on one recorded round.

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

    def run(self, cells: Sequence[Cell]) -> list[Found]:
        """All cells, in their order."""
        found = []
        with Attacker(self._parts, self._live) as attacker:
            for cell in cells:
                one = Found(cell, self._parts.registry.build("attack", cell.attack))
                found.append(one)
                one.misfit = self._misfit(one)
                if one.misfit:
                    one.why = "misfit"
                    continue
                try:
                    view = read_view(self._folder, self._parts, cell.vantage, self._round, first=self._round)
                except ConfigError as error:
                    one.misfit, one.why = str(error), "no_such_party" if isinstance(error, NoSuchParty) else "misfit"
                    continue
                if self.site in view.last.members:
                    one.misfit, one.why = OWN, "own"
                    continue
                self._one(one, view, attacker)
        return found

    def _misfit(self, one: Found) -> str:
        if one.attack.answers in ("labels", "area", "update"):
            return "of a recorded round it is not scored what an attack says of all its images together; let one be staged"
        return ""

    def _one(self, one: Found, view: AdversaryView, attacker: Attacker) -> None:
        sight, effort = view.of(self.site), self._effort.of(one.cell.attack)
        base = self._knowledge(len(sight.sites) if sight else len(self._sizes), before_noise(self.privacy, one.cell.vantage))
        control = self.control(view)
        trials = self._trials(one, base)
        for number, (knowledge, truth, who) in enumerate(trials):
            self._emit({"event": "victim", "number": number + 1, "of": len(trials), "round": self._round})
            answered = attacker.answer(one.cell.attack, view, effort.seconds, knowledge)
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
            open_ = replace(knowledge, defence=self._undefended)
            wrong = AdversaryView(view.vantage, (randomized(view.last, Seeds(self._effort.seed).generator("random round", number)),))
            for other, told, kept in ((control, open_, one.control), (wrong, knowledge, one.negative)):
                again = attacker.answer(one.cell.attack, other, effort.seconds, told)
                score = scored(one.attack.answers, again, truth, told, blind)
                if why := again["misfit"] or again["error"]:
                    one.broken.append(why)
                if not why or kept is one.control:
                    kept.append({**score, **who})

    def _knowledge(self, sites: int, raw: bool) -> Knowledge:
        training, run = self._parts.config.training, self._parts.config.run
        rate = training.optimizer.lr * learning_rate_factor(training, self._round, run.rounds)
        steps = steps_per_round(training, self._sizes[self.site], self._parts.personalization.batches_per_step, self.privacy.sample_rate)
        defence = self.privacy.defence(self._round, sites)
        return known(
            self._parts,
            self.site,
            training=Training(rate, steps, min(training.batch_size, self._sizes[self.site]), exact=False),
            defence=replace(defence, noise=0.0) if raw else defence,
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
            asked = [self._some(s, "train") for s in base.sites]
            queries = Images(np.concatenate([a.images for a in asked]), np.concatenate([a.targets for a in asked]))
            whose = np.repeat(np.arange(len(asked)), [len(a) for a in asked])
            order = Seeds(effort.seed).generator("queries").permutation(len(queries))
            known_from = {s: self._some(s, "validation") for s in base.sites}
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
        """Training images of the site and as many others of it, in an order that says nothing."""
        inside, outside = self._some(site, "train"), self._some(site, "test", "validation")
        few = min(len(inside), len(outside))
        images = np.concatenate([inside.images[:few], outside.images[:few]])
        targets = np.concatenate([inside.targets[:few], outside.targets[:few]])
        order = Seeds(self._effort.seed).generator("members", site).permutation(2 * few)
        return Images(images[order], targets[order]), np.arange(2 * few)[order] < few

    def _some(self, site: str, *splits: Any) -> Images:
        """At most ``ASKED`` images of these parts of a site, drawn by the seed."""
        data = self._parts.load(site)
        held = [(data.part(split), i) for split in splits for i in range(len(data.part(split)))]
        order = Seeds(self._effort.seed).generator("asked", site, *splits).permutation(len(held))[:ASKED]
        return images_of([held[i] for i in order])

    def control(self, view: AdversaryView) -> AdversaryView:
        """The same round where every site's own update, made with plain gradients, is in the open."""
        weights = view.last.weights
        every = tuple(Sight((site,), self.update(site, weights), float(self._sizes[site])) for site in self._sizes)
        own = next(s for s in every if self.site in s.sites)
        after = {n: (np.asarray(w) + own.update[n]).astype(np.asarray(w).dtype) if n in own.update else w for n, w in weights.items()}
        return AdversaryView(view.vantage, (replace(view.last, sights=every, after=after, messages=(), secrets={}),))

    def update(self, site: str, weights: Arrays) -> dict[str, npt.NDArray[np.float32]]:
        """A site's update of the round by the run's own rule and order of examples, without privacy mechanism."""
        parts, model = self._parts, self._parts.model
        load_state(model, to_torch(dict(weights)), parts.initial_personal)
        examples, run = parts.load(site).train, parts.config.run
        data = LocalTraining(examples, parts.config.training, parts.seeds, site=site, round=self._round, rounds=run.rounds)
        with seeded(parts.seeds.integer("round", self._round, "site", site, "update")):
            state = parts.personalization.init(model)
            made, _ = parts.personalization.local_update(model, data, plain_rule(parts, examples), state)
        return {n: made.delta[n].numpy().astype(np.float32) for n in weights if n in made.delta}


def open_plan(parts: Assembly, sizes: Mapping[str, int]) -> PrivacyPlan:
    """The plan of privacy with the defence off."""
    bare = undefended(parts)
    return bare.mechanism.plan(bare.privacy_setting(sizes))

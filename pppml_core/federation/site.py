"""A site: bytes in, bytes out. Policy first, then the model, then one message of a session at a time.

``Site.receive`` is the same in every engine. What a site holds between rounds is in its own folder (:mod:`.store`); what it holds
within an attempt is plain data that :meth:`Site.freeze` writes down, so a simulation may recreate it before every message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import ConfigError, InconsistentModel, PolicyRefusal, PppmlError, WireError
from pppml_core.federation import evaluation
from pppml_core.federation.announced import pipeline_of, refuse_misplaced, refuse_other_promises, refuse_strangers
from pppml_core.federation.identity import load_identity, load_roster
from pppml_core.federation.pipeline import Pipeline
from pppml_core.federation.policy import Policy
from pppml_core.federation.reason import reason_of
from pppml_core.federation.releases import Opening, Releases
from pppml_core.federation.secret_record import SECRETS, SecretRecord
from pppml_core.federation.session_side import SessionSide
from pppml_core.federation.site_context import Context
from pppml_core.federation.store import SiteStore
from pppml_core.federation.terms import about_scores, binding, binding_of_sum, check_request, lasting
from pppml_core.federation.trainer import Trainer
from pppml_core.wire.codec import decode, decode_message, encode, encode_message
from pppml_core.wire.messages import SERVER, SUMS, WITHIN, Body, Message

if TYPE_CHECKING:
    from pppml_core.federation.site_host import SiteHost


class Site:
    """One party that holds data."""

    def __init__(self, name: str, host: SiteHost, policy: Policy) -> None:
        self.name, self._host, self._policy = name, host, policy
        home = host.job.home(name)
        self.identity = load_identity(home)
        self._roster = load_roster(home)
        if self._roster.setdefault(name, self.identity.public) != self.identity.public:
            hint = "restore identity.key or roster.json from a backup"
            raise ConfigError("this home pins another identity for itself", place=str(home), hint=hint)
        self._store = SiteStore(host.job.folder / name)
        self._releases = Releases(name, self._store, policy, host.job.sites, host.privacy.min_survivors)
        self._trainer = Trainer(host.assembly, name, self._store, host.privacy, host.clock)
        #: the open attempt: round, attempt, terms, weights (hash). Empty before the first.
        self._open: dict[str, Any] = {}
        #: scores made in the open attempt, where they leave only in a sum. Empty before.
        self._scores: dict[str, Any] = {}
        self._sides: dict[str, SessionSide] = {}
        #: whether the last thing of a run was asked.
        self.over = False
        #: told of the round and the model that is about to be trained, each time; may refuse.
        self.before_training: Callable[[int, bytes], None] = lambda round, model: None
        #: for experiments only.
        self._record = SecretRecord(self._store.folder) if host.assembly.config.run.transcript == SECRETS else None

    def receive(self, frame: bytes) -> bytes:
        """The reply to one frame. Never raises for anything a peer can cause: it answers ``refused`` or ``failed`` with the reason."""
        try:
            message = decode_message(frame)
        except WireError as error:
            unknown = Message(self._host.job.run, 0, 1, "unreadable", "", SERVER, self.name)
            return self._reply(unknown, "failed", self._reason(error))
        try:
            if message.recipient != self.name or message.run != self._host.job.run:
                raise WireError("this message is for another run or site", place=self.name)
            if message.kind in WITHIN:
                self._check_attempt(message)
            self._check_sender(message)
            if message.kind in SUMS:
                return self._side(message.kind).answer(message, frame)
            body = self._answer(message)
            self._host.manifest.check(message.stage, body)
            return self._reply(message, "reply", body)
        except PolicyRefusal as error:
            return self._reply(message, "refused", self._reason(error))
        except PppmlError as error:
            return self._reply(message, "failed", self._reason(error))

    def _reason(self, error: Exception) -> Body:
        return reason_of(error, simulated=self._host.job.homes is None)

    def _reply(self, message: Message, kind: str, body: Body) -> bytes:
        return encode_message(Message(message.run, message.round, message.attempt, kind, message.stage, self.name, SERVER, body))

    def _answer(self, message: Message) -> Body:
        check_request(message.kind, message.body)
        if message.kind == "hello":
            self._store.check()
            if self._store.begins(message.body["start"]):
                # Begun anew: an attempt that was given up is not gone on with, and none of its secrets is kept.
                self._open, self._sides, self._scores = {}, {}, {}
                self._store.tidy()
            return {"rounds": self._store.rounds(), "attempts": {str(r): a for r, a in self._store.attempts().items()}}
        if message.kind == "open":
            return self._begin(message)
        if message.kind == "train":
            self.contribution("session")
            return {"done": True}
        return self._evaluate(message)

    def _begin(self, message: Message) -> Body:
        """Check the terms, take the model, start the attempt."""
        terms = message.body["terms"]
        self._policy.check(terms)
        if self._record is not None and not self._policy.record_secrets:
            raise PolicyRefusal("record_secrets: this run would write down this site's keys and updates (run.transcript: secrets)")
        rounds, sites = self._host.assembly.config.run.rounds, self._host.job.sites
        refuse_misplaced(terms, message.round, rounds, self.name, sites)
        refuse_other_promises(terms, self._host.assembly, self._host.privacy, sites)
        refuse_strangers(terms, self._roster)
        bound = binding(message.run, message.round, message.attempt, message.body["sha256"], terms)
        if self._is_open(message):
            if bound != self._open["binding"]:
                raise PolicyRefusal("this attempt is already open with another model or other terms")
            return {"needs_weights": False}
        if self._store.answered(message.round, message.attempt):
            raise PolicyRefusal(f"round {message.round}, attempt {message.attempt} may already have been answered by this site")
        if self._model(message) is None:
            return {"needs_weights": True}
        self._store.save_attempt(message.round, message.attempt)
        self._store.go_back_to(message.round)
        place = {"round": message.round, "attempt": message.attempt, "weights": message.body["sha256"]}
        self._open = {**place, "terms": terms, "binding": bound}
        self._sides, self._scores, self.over = {}, {}, False
        return {"needs_weights": False}

    @property
    def cohort(self) -> tuple[str, ...]:
        """Sites of the open attempt; none where none is open."""
        return tuple(self._open["terms"]["cohort"]) if self._open else ()

    @property
    def attempt(self) -> tuple[int, int] | None:
        """Round and number of the open attempt."""
        return (self._open["round"], self._open["attempt"]) if self._open else None

    def _is_open(self, message: Message) -> bool:
        return (self._open.get("round"), self._open.get("attempt")) == (message.round, message.attempt)

    def _check_attempt(self, message: Message) -> None:
        if not self._is_open(message):
            raise WireError(f"round {message.round}, attempt {message.attempt} is not open at this site", place=self.name)

    def _check_sender(self, message: Message) -> None:
        """Messages are the server's, but for hops of a relay, which come from a site of the attempt."""
        if message.sender != SERVER and not (self._is_hop(message) and message.sender in self._open["terms"]["cohort"]):
            raise WireError(f"stage {message.stage!r} is not for {message.sender} to ask", place=self.name)

    def check_path(self, message: Message, path: Sequence[str]) -> None:
        """Raise WireError unless the answer to this message may be handed on along ``path``: it is a hop of a relay, and these are
        other sites of the open attempt, each once. Raises PolicyRefusal where this site hands on nothing.
        """
        self._check_attempt(message)
        if not self._policy.hand_on:
            raise PolicyRefusal("hand_on: this site hands no message on to another one", place=self.name)
        others = set(self._open["terms"]["cohort"]) - {self.name}
        if not self._is_hop(message) or len(set(path)) != len(path) or not set(path) <= others:
            raise WireError(f"stage {message.stage!r} is not handed on along {', '.join(path)}"[:200], place=self.name)

    def _is_hop(self, message: Message) -> bool:
        within = message.kind in SUMS and self._is_open(message)
        return within and message.stage in self._side(message.kind).relays

    def _model(self, message: Message) -> Mapping[str, npt.NDArray[Any]] | None:
        """The weights a message speaks of, see :meth:`.SiteHost.take_model`; by policy their values are checked too."""
        sha256, weights = message.body["sha256"], self._host.take_model(message.body, self.name)
        # Not only when it arrives: another site of this process, with another policy, may have taken it in.
        if self._policy.vet_weights and weights is not None and (found := self._host.suspicions(sha256)):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            hint = "if it is honest, lower the learning rate, or set vet_weights: false in policy.yaml"
            raise PolicyRefusal(f"vet_weights: {found[0]}{more}", place=self.name, hint=hint)
        return weights

    def _pipeline(self) -> Pipeline | None:
        return pipeline_of(self._open["terms"], self._host.assembly, self._host.privacy)

    def _side(self, kind: str) -> SessionSide:
        if kind not in self._sides:
            opening = self._opening(kind)
            self._releases.held(opening)  # refuses before anything is made for a sum that will not be opened
            ctx = Context(
                site=self.name,
                run=self._host.job.run,
                round=opening.round,
                attempt=opening.attempt,
                cohort=opening.cohort,
                binding=binding_of_sum(self._open["binding"], kind, self._scored()["about"] if kind == "metrics" else {}),
                roster={party: self._roster[party] for party in (*opening.cohort, SERVER)},
                policy=self._releases.policy(kind),
                identity=self.identity,
                make=partial(self.contribution, kind),
                note=partial(self.release, kind),
            )
            session = self._host.assembly.aggregator.plan(self._value(kind), opening.cohort)
            remember = None if self._record is None else partial(self._record.note, self._open["round"], self._open["attempt"])
            self._sides[kind] = SessionSide(session, ctx, self._store.folder / f"replies-{kind}", remember)
        return self._sides[kind]

    def _opening(self, kind: str) -> Opening:
        splits = tuple(self._scored()["splits"]) if kind == "metrics" else ()
        place = (self._open["round"], self._open["attempt"], tuple(self._open["terms"]["cohort"]))
        return Opening(kind, *place, self._open["weights"], splits)

    def release(self, kind: str, sites: Sequence[str]) -> None:
        """Note that unmasking material for the sum over ``sites`` leaves this site now; refuse it where it left before."""
        self._releases.note(self._opening(kind), sites)

    def _value(self, kind: str) -> Any:
        if kind == "metrics":
            scores = self._scored()
            return evaluation.sum_layout(self._host.assembly.spec, scores["splits"], scores["kinds"])[1].spec
        pipeline = self._pipeline()
        if pipeline is None:
            raise PolicyRefusal("this site shares no update", place=self.name)
        return pipeline.spec

    def _scored(self) -> dict[str, Any]:
        if not self._scores:
            raise WireError("nothing was evaluated in this attempt", place=self.name)
        return self._scores

    def contribution(self, kind: str) -> npt.NDArray[Any]:
        """What this site adds to a sum in the open attempt."""
        if kind == "metrics":
            return np.asarray(self._scored()["values"])
        self.before_training(self._open["round"], self._open["weights"])
        weights = self._host.models.get(self._open["weights"])
        if weights is None:
            raise InconsistentModel("the model of this attempt is no longer held here", place=self.name)
        # An attempt more is the same contribution: the key leaves it out.
        key = binding(self._host.job.run, self._open["round"], 0, self._open["weights"], lasting(self._open["terms"]))
        pipeline = self._pipeline()
        values = self._trainer.contribution(self._open["round"], key, weights, pipeline, self._open["terms"]["keep"])
        if self._record is not None:
            self._record.note_contribution(self._open["round"], values)
        return values

    def _evaluate(self, message: Message) -> Body:
        if self._open and message.round < self._open["round"]:  # recorded, perhaps: its model would take the place of the open attempt's
            raise WireError(f"round {message.round} is over at this site", place=self.name)
        weights = self._model(message)
        if weights is None:
            return {"needs_weights": True}
        config, parts = self._host.assembly.config, self._host.assembly
        if "metrics" in self._sides:
            raise PolicyRefusal("the scores of this attempt are in a sum already", place=self.name)
        if not 0 <= message.body["state"] <= message.round <= config.run.rounds:
            raise WireError("there is no state of such a round", place=self.name)
        # What is scored must be what every site of the sum scores: with a model of its own for each site a sum would hide nothing.
        if config.run.metrics == "sum" and not (self._is_open(message) and message.body["sha256"] == self._open["weights"]):
            raise PolicyRefusal("scores that leave in a sum are those of the model of an open attempt", place=self.name)
        splits = tuple(message.body["splits"])
        sites = self._host.job.sites
        if (few := evaluation.too_few_patients(parts, self.name, sites, self._policy.fewest_patients)) is not None:
            raise PolicyRefusal(f"fewest_patients: {few}")
        if config.run.metrics != "none":
            for split in splits:  # as many as the rounds need, and as many again for rounds that a resumed run holds anew
                self._store.save_scored(split, message.body["sha256"], most=2 * (config.run.rounds + 1))
        scores = self._trainer.scores(message.body["state"], weights, splits, keep=message.body["final"])
        if message.body["final"]:
            self.over = True
            for side in self._sides.values():
                side.forget()  # no more updates are asked for
        if config.run.metrics == "sum":
            kinds = evaluation.weight_kinds(parts.personalization)
            generator = parts.seeds.generator("evaluation", message.round, "site", self.name, "rounding")
            values = evaluation.to_sum(scores, parts.spec, splits, kinds, generator)
            self._scores = {"values": values, "splits": splits, "kinds": kinds, "about": about_scores(message.body)}
        body: dict[str, Any] = {"needs_weights": False}
        return {**body, "scores": evaluation.to_wire(scores)} if config.run.metrics == "per-site" else body

    def freeze(self) -> bytes:
        """Everything a recreated site needs to go on within an attempt."""
        sha256 = self._open.get("weights")
        models = {"sha256": sha256, "weights": dict(self._host.models[sha256])} if sha256 in self._host.models else None
        sides = {kind: side.freeze() for kind, side in self._sides.items()}
        return encode({"open": self._open, "scores": self._scores, "model": models, "sides": sides})

    @classmethod
    def thaw(cls, name: str, host: SiteHost, data: bytes) -> Site:
        """A site recreated from its frozen bytes; nothing else of it survives. For simulations and tests: no site at a hospital is."""
        held = decode(data)
        site = host.site(name)
        site._open, site._scores = held["open"], held["scores"]
        if held["model"] is not None:
            host.keep_model(held["model"]["sha256"], held["model"]["weights"])
        for kind, frozen in held["sides"].items():
            site._side(kind).thaw(frozen)
        return site

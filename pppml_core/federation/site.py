"""A site: bytes in, bytes out. Policy first, then the model, then one message of a session at a time.

``Site.receive`` is the same in every engine. What a site holds between rounds is in its own folder (:mod:`.store`); what it holds
within an attempt is plain data that :meth:`Site.freeze` writes down, so an engine may recreate it before every message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.config import resolve
from pppml_core.errors import ConfigError, InconsistentModel, PolicyRefusal, PppmlError, WireError
from pppml_core.federation import evaluation
from pppml_core.federation.assembly import Assembly, fewest_survivors
from pppml_core.federation.identity import load_identity, load_roster, roster_hash
from pppml_core.federation.pipeline import Pipeline
from pppml_core.federation.policy import Policy, load_policy, refuse_unheld
from pppml_core.federation.reason import LENGTH, reason_of
from pppml_core.federation.secret_record import SECRETS, SecretRecord
from pppml_core.federation.session_side import SessionSide
from pppml_core.federation.store import SiteStore, sites_digest
from pppml_core.federation.terms import RELEASED, about_scores, binding, binding_of_sum, check_request, lasting, promises
from pppml_core.federation.trainer import Trainer
from pppml_core.federation.vetting import suspicious
from pppml_core.interfaces.engine import Job
from pppml_core.learning.arrays import to_numpy
from pppml_core.randomness import entropy
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode, decode_message, encode, encode_message, sha256_of
from pppml_core.wire.manifest import Manifest, WireField
from pppml_core.wire.messages import SERVER, Body, Message

#: What a site may answer outside of sessions and scores.
ROUND_FIELDS = (
    WireField("hello", "rounds", "list", (), 4096, "in the clear", "rounds whose state this site holds"),
    WireField("hello", "attempts", "map", (), 1024, "in the clear", "the last attempt this site took part in, of each of its last rounds"),
    WireField("open", "needs_weights", "bool", (), 8, "in the clear", "whether the model must be sent"),
    WireField("train", "done", "bool", (), 8, "in the clear", "that local training has ended (nothing is shared)"),
    WireField("evaluate", "needs_weights", "bool", (), 8, "in the clear", "whether the model must be sent"),
    WireField("refused or failed", "reason", "str", (), LENGTH, "in the clear", "why a site did not answer, in words"),
)


class SiteHost:
    """Builds a job's parts once and brings its sites to life in this process; all sites of a process share one network."""

    def __init__(self, job: Job) -> None:
        self.job = job
        assembly = job.parts
        if assembly is None:
            registry = Registry.discover()
            assembly = Assembly.build(resolve(job.config, registry=registry), registry, job.objects)
        self.assembly: Assembly = assembly
        self.clock: dict[str, float] = {}
        #: the newest models by hash, shared by the sites of this process.
        self.models: dict[bytes, Mapping[str, npt.NDArray[Any]]] = {}
        self._suspicions: dict[bytes, list[str]] = {}
        self.privacy = self.assembly.mechanism.plan(self.assembly.privacy_setting(job.sizes))
        shared = self.assembly.config.run.metrics
        self.manifest = Manifest((*ROUND_FIELDS, *evaluation.evaluation_fields(self.assembly.spec, job.sites, shared)))

    def site(self, name: str, policy: Policy | None = None) -> Site:
        """The site of that name, with the policy of its home unless another is given. Raises ConfigError where its home is not in order."""
        if policy is None:
            policy = load_policy(self.job.home(name))
            refuse_unheld(policy, self.job.home(name))
        # A home under the run's folder is that of a simulated site, whose secrets are in the hands of whoever started the run anyway.
        if self.job.homes is None and "record_secrets" not in policy.model_fields_set:
            policy = policy.model_copy(update={"record_secrets": True})
        return Site(name, self, policy)

    def keep_model(self, sha256: bytes, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Hold a model; only the newest two are needed."""
        self.models.setdefault(sha256, weights)
        for old in list(self.models)[:-2]:
            del self.models[old]
            self._suspicions.pop(old, None)

    def suspicions(self, sha256: bytes) -> list[str]:
        """What does not look like a trained network in a model that is held; looked at once for all sites of this process."""
        if sha256 not in self._suspicions:
            self._suspicions[sha256] = suspicious(self.models[sha256], to_numpy(self.assembly.initial_weights))
        return self._suspicions[sha256]


@dataclass(frozen=True)
class _Context:
    """The site's side of one attempt; implements ``interfaces.aggregation.SiteContext``."""

    owner: Site = field(repr=False)
    kind: str
    site: str
    run: bytes
    round: int
    attempt: int
    cohort: tuple[str, ...]
    binding: bytes
    roster: Mapping[str, bytes]
    policy: Policy

    def contribution(self) -> npt.NDArray[Any]:
        """The update (trained on the first call) or, for kind ``metrics``, the scores."""
        return self.owner.contribution(self.kind)

    def entropy(self, length: int) -> bytes:
        """From the operating system."""
        return entropy(length)

    def sign(self, statement: bytes) -> bytes:
        """With this site's identity."""
        return self.owner.identity.sign(statement)

    def release(self, sites: Sequence[str]) -> None:
        """Once, and on the disk before it returns."""
        self.owner.release(self.kind, sites)


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
        self._trainer = Trainer(host.assembly, name, self._store, host.privacy, host.clock)
        #: the open attempt: round, attempt, terms, weights (hash). Empty before the first.
        self._open: dict[str, Any] = {}
        #: scores made in the open attempt, where they leave only in a sum. Empty before.
        self._scores: dict[str, Any] = {}
        self._sides: dict[str, SessionSide] = {}
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
            if message.kind in ("session", "metrics", "train"):
                self._check_attempt(message)
            self._check_sender(message)
            if message.kind in ("session", "metrics"):
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
            # A run begins, or begins anew: an attempt that was given up is not gone on with, and none of its secrets is kept.
            self._open, self._sides, self._scores = {}, {}, {}
            self._store.tidy()
            self._store.check()
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
        rounds = self._host.assembly.config.run.rounds
        if not 1 <= message.round <= rounds:
            raise PolicyRefusal(f"round {message.round} is none of the {rounds} rounds of this run")
        if self.name not in terms["cohort"] or not set(terms["cohort"]) <= set(self._host.job.sites) or terms["round"] != message.round:
            raise PolicyRefusal("the terms are not for this site and round")
        self._check_promises(terms)
        self._check_roster(terms)
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
        self._sides, self._scores = {}, {}
        return {"needs_weights": False}

    def _check_promises(self, terms: Mapping[str, Any]) -> None:
        """What is announced must be what this site's own configuration will do, or the policy was shown something else."""
        parts, privacy = self._host.assembly, self._host.privacy
        pipeline = self._pipeline(terms)
        guarantees = None if pipeline is None else parts.aggregator.plan(pipeline.spec, tuple(terms["cohort"])).guarantees
        if guarantees is not None and (fewest := fewest_survivors(guarantees, len(terms["cohort"]))) < privacy.min_survivors:
            text = (
                f"a sum over {fewest} of the announced sites could be opened, and this site's noise is a share for {privacy.min_survivors}"
            )
            raise PolicyRefusal(text)
        own = {**promises(guarantees, privacy.statement), "metrics": evaluation.announced_share(parts, self._host.job.sites)}
        for name, promised in own.items():
            if terms[name] != promised:
                raise PolicyRefusal(f"the announced {name} are not those of this site's configuration")

    def _check_roster(self, terms: Mapping[str, Any]) -> None:
        """The identities the server counts on must be those pinned here, or strangers could be put among the sites."""
        parties = (*terms["cohort"], SERVER)
        if unknown := [party for party in parties if party not in self._roster]:
            raise PolicyRefusal(f"no identity is pinned here for {', '.join(unknown)}", hint="pppml site trust")
        if roster_hash(self._roster, parties) != terms["roster"]:
            hint = "compare fingerprints: pppml site show"
            raise PolicyRefusal("the identities that the server announced are not those pinned at this site", hint=hint)

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
        within = message.kind in ("session", "metrics") and self._is_open(message)
        return within and message.stage in self._side(message.kind).relays

    def _model(self, message: Message) -> Mapping[str, npt.NDArray[Any]] | None:
        """The weights a message speaks of: sent along, or already here. Their hash, names, shapes and (by policy) values are checked."""
        sha256 = message.body["sha256"]
        # Whoever shares this process may have taken in this very model, checked against this very hash.
        if "weights" in message.body and sha256 not in self._host.models:
            weights = message.body["weights"]
            if sha256_of(weights) != sha256:
                raise InconsistentModel("the model does not have the announced hash", place=self.name)
            expected = to_numpy(self._host.assembly.initial_weights)
            if {n: (a.shape, a.dtype) for n, a in weights.items()} != {n: (a.shape, a.dtype) for n, a in expected.items()}:
                raise InconsistentModel("the model has other tensors than this site's configuration", place=self.name)
            self._host.keep_model(sha256, weights)
        # Not only when it arrives: another site of this process, with another policy, may have taken it in.
        if self._policy.vet_weights and sha256 in self._host.models and (found := self._host.suspicions(sha256)):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            hint = "if it is honest, lower the learning rate, or set vet_weights: false in policy.yaml"
            raise PolicyRefusal(f"vet_weights: {found[0]}{more}", place=self.name, hint=hint)
        return self._host.models.get(sha256)

    def _pipeline(self, terms: Mapping[str, Any]) -> Pipeline | None:
        parts = self._host.assembly
        if not parts.personalization.shares:
            return None
        return parts.pipeline(terms["round"], tuple(terms["ranges"]), terms["max_weight"], self._host.privacy)

    def _side(self, kind: str) -> SessionSide:
        if kind not in self._sides:
            self._refuse_released(kind)
            cohort = tuple(self._open["terms"]["cohort"])
            bound = binding_of_sum(self._open["binding"], kind, self._scored()["about"] if kind == "metrics" else {})
            place = (self._host.job.run, self._open["round"], self._open["attempt"], cohort, bound)
            roster = {party: self._roster[party] for party in (*cohort, SERVER)}
            ctx = _Context(self, kind, self.name, *place, roster, self._sum_policy(kind))
            session = self._host.assembly.aggregator.plan(self._value(kind), cohort)
            remember = None if self._record is None else partial(self._record.note, self._open["round"], self._open["attempt"])
            self._sides[kind] = SessionSide(session, ctx, self._store.folder / f"replies-{kind}", remember)
        return self._sides[kind]

    def _sum_policy(self, kind: str) -> Policy:
        """This site's policy for one kind of sum: noise that is a share for so many sites is released in no sum over fewer."""
        fewest = max(self._policy.min_cohort, self._host.privacy.min_survivors if kind == "session" else 1)
        return self._policy.model_copy(update={"min_cohort": fewest})

    def _which(self, kind: str) -> tuple[str, ...]:
        """The names under which a sum is released: of updates, once a round; of scores, once a round and set, and once a model and set."""
        if kind == "session":
            return (kind,)
        splits = self._scored()["splits"]
        return (*(f"{kind} {split}" for split in splits), *(f"{kind} {split} {self._open['weights'].hex()}" for split in splits))

    def _refuse_released(self, kind: str) -> dict[str, bytes]:
        """Raise PolicyRefusal where another attempt released any of this. What this attempt released of it: name -> digest of the sites."""
        here, found = (self._open["round"], self._open["attempt"]), {}
        for name in self._which(kind):
            if name.count(" ") < 2:  # once a round
                in_round = self._store.released(here[0], name)
                held = None if in_round is None else (here[0], *in_round)
            else:
                held = self._store.released_ever(name)
            if held is not None and held[:2] != here:
                raise PolicyRefusal(f"{RELEASED} in attempt {held[1]} of round {held[0]}", place=self.name)
            if held is not None:
                found[name] = held[2]
        return found

    def release(self, kind: str, sites: Sequence[str]) -> None:
        """Note that unmasking material for the sum over ``sites`` leaves this site now; refuse it where it left before."""
        cohort, distinct = self._open["terms"]["cohort"], set(sites)
        if len(distinct) != len(sites) or not distinct <= set(cohort):
            raise PolicyRefusal("a sum over sites that are not of this attempt", place=self.name)
        if len(distinct) < (fewest := self._sum_policy(kind).min_cohort):
            raise PolicyRefusal(f"min_cohort: a sum over {len(distinct)} sites, at least {fewest} required", place=self.name)
        held = self._refuse_released(kind)
        if any(sites_of != sites_digest(distinct) for sites_of in held.values()):
            raise PolicyRefusal(f"{RELEASED} over other sites in this attempt", place=self.name)
        if kind == "metrics":
            self._keep_apart(distinct)
        for name in self._which(kind):
            if name not in held:
                self._store.save_release(self._open["round"], self._open["attempt"], name, distinct)

    def _keep_apart(self, sites: Set[str]) -> None:
        """Refuse a sum of scores that shows, with those released before, the scores of fewer sites than the policy lets a sum be over.

        A server can ask for two sums of scores of nearly one model, over all sites and over all but one: the difference is that one's.
        """
        left = evaluation.smallest_part([*self._store.score_sets(), sites])
        fewest = 1 if self._policy.metrics == "per-site" else max(self._policy.min_cohort, self._policy.min_honest)
        if left < fewest:
            text = f"{RELEASED}, over other sites: the difference would be the scores of {left}, at least {fewest} required (min_cohort)"
            raise PolicyRefusal(text, place=self.name)
        self._store.save_score_set(sites)

    def _value(self, kind: str) -> Any:
        if kind == "metrics":
            scores = self._scored()
            return evaluation.sum_layout(self._host.assembly.spec, scores["splits"], scores["kinds"])[1].spec
        pipeline = self._pipeline(self._open["terms"])
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
        pipeline = self._pipeline(self._open["terms"])
        values = self._trainer.contribution(self._open["round"], key, weights, pipeline, self._open["terms"]["keep"])
        if self._record is not None:
            self._record.note_contribution(self._open["round"], values)
        return values

    def _evaluate(self, message: Message) -> Body:
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
    def thaw(cls, name: str, host: SiteHost, data: bytes, policy: Policy | None = None) -> Site:
        """A site recreated from its frozen bytes; nothing else of it survives. ``policy``: as in :meth:`SiteHost.site`."""
        held = decode(data)
        site = host.site(name, policy)
        site._open, site._scores = held["open"], held["scores"]
        if held["model"] is not None:
            host.keep_model(held["model"]["sha256"], held["model"]["weights"])
        for kind, frozen in held["sides"].items():
            site._side(kind).thaw(frozen)
        return site

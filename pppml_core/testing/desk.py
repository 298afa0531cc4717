"""The coordinator's desk: homes of real sites in this process, and single letters to them, written by hand as a liar would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pppml_core.api import Experiment
from pppml_core.config import to_plain
from pppml_core.federation import evaluation
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.audit import read_audit
from pppml_core.federation.identity import Identity, load_identity, load_roster, roster_hash
from pppml_core.federation.invitation import JOIN, invitation_to
from pppml_core.federation.letter import frame_in, written
from pppml_core.federation.pipeline import contribution_ranges
from pppml_core.federation.resident import Resident
from pppml_core.federation.terms import round_terms
from pppml_core.interfaces.engine import Job
from pppml_core.learning.arrays import to_numpy
from pppml_core.registry import Registry
from pppml_core.testing.policies import insist
from pppml_core.testing.residents import acquaint
from pppml_core.values import rms
from pppml_core.wire.codec import decode_message, encode_message, sha256_of
from pppml_core.wire.messages import SERVER, Message

RUN = b"a run of a test!"
Weights = Mapping[str, Any]


class Desk:
    """Residents with the policy of a hospital, and everybody's keys.

    Args:
        folder: homes are made in ``folder/homes``.
        sections: of the run.
        rules: YAML, laid over the policy that `pppml site init` writes; over that of a simulation where not ``careful``.
        sites: how many, ``site_1`` and so on.
        registry: default: everything installed.
    """

    def __init__(
        self,
        folder: Path,
        sections: Mapping[str, Any],
        rules: str = "",
        *,
        sites: int = 3,
        careful: bool = True,
        registry: Registry | None = None,
    ) -> None:
        self.homes = folder / "homes"
        self.sites = tuple(f"site_{i + 1}" for i in range(sites))
        acquaint(self.homes, (*self.sites, SERVER))
        for site in self.sites:
            self.insist(site, rules, careful=careful)
        plan = Experiment(sections, registry=registry or Registry.discover())._plan()
        assert plan.assembly is not None, plan.misfits
        self.parts: Assembly = plan.assembly
        self.sizes, self.max_weight = plan.sizes, plan.max_weight
        self.weights: Weights = to_numpy(self.parts.initial_weights)
        self.residents = {site: Resident(self.homes / site) for site in self.sites}

    def insist(self, site: str, rules: str, *, careful: bool = True) -> None:
        """Write this site's policy."""
        insist(self.homes / site, rules, careful=careful)

    def key(self, party: str) -> Identity:
        """A party's own."""
        return load_identity(self.homes / party)

    def restart(self, site: str) -> None:
        """Another process takes the place of this one."""
        self.residents[site] = Resident(self.homes / site)

    def ask(
        self,
        site: str,
        kind: str,
        stage: str,
        body: Mapping[str, Any],
        round: int = 1,
        attempt: int = 1,
        *,
        run: bytes = RUN,
        sender: str = SERVER,
        signer: str = SERVER,
        key: Identity | None = None,
        path: Sequence[str] = (),
    ) -> Message:
        """A site's answer to a letter: a message of the coordinator's, or of another party's."""
        frame = encode_message(Message(run, round, attempt, kind, stage, sender, site, body))
        reply = self.residents[site].receive(written(key or self.key(signer), signer, frame, tuple(path)))
        return decode_message(frame_in(reply))

    def job(self, run: bytes = RUN) -> Job:
        """Of a run."""
        return Job(run, to_plain(self.parts.config), self.homes, self.sites, self.sizes, {}, homes=self.homes, parts=self.parts)

    def invite(self, site: str, run: bytes = RUN) -> Message:
        """As an honest coordinator does."""
        body = invitation_to(self.job(run), self.parts).body(self.key(SERVER))
        return self.ask(site, JOIN, JOIN, body, 0, run=run)

    def terms(self, round: int = 1, cohort: Sequence[str] | None = None) -> dict[str, Any]:
        """As an honest coordinator announces them."""
        parts, cohort = self.parts, tuple(cohort or self.sites)
        privacy, shares = parts.mechanism.plan(parts.privacy_setting(self.sizes)), parts.personalization.shares
        ranges = contribution_ranges(parts.shared, parts.config.encoding, None, rms(self.weights, list(self.weights))) if shares else ()
        spec = parts.pipeline(round, ranges, self.max_weight, privacy).spec if shares else None
        return round_terms(
            round=round,
            cohort=cohort,
            ranges=ranges,
            max_weight=self.max_weight,
            guarantees=None if spec is None else parts.aggregator.plan(spec, cohort).guarantees,
            privacy=privacy.statement,
            metrics=evaluation.announced_share(parts, self.sites),
            keep=(),
            roster=roster_hash(load_roster(self.homes / SERVER), (*cohort, SERVER)),
        )

    def open(self, site: str, round: int = 1, attempt: int = 1, *, weights: Weights | None = None, **how: Any) -> Message:
        """Open an attempt; ``cohort`` and the rest as in :meth:`terms` and :meth:`ask`."""
        weights = self.weights if weights is None else weights
        body = {"terms": self.terms(round, how.pop("cohort", None)), "sha256": sha256_of(weights), "weights": weights}
        return self.ask(site, "open", "open", body, round, attempt, **how)

    def evaluate(self, site: str, round: int = 1, attempt: int = 1, *, weights: Weights | None = None, **how: Any) -> Message:
        """Ask for scores of the validation set, or of ``splits``."""
        weights = self.weights if weights is None else weights
        body = {"state": 0, "splits": how.pop("splits", ["validation"]), "final": False, "sha256": sha256_of(weights), "weights": weights}
        return self.ask(site, "evaluate", "evaluate", body, round, attempt, **how)

    def moved(self, number: int) -> Weights:
        """The initial weights, a little off: another model."""
        return {name: (array + 1e-4 * number).astype(array.dtype) for name, array in self.weights.items()}

    def logged(self, site: str) -> list[dict[str, Any]]:
        """The audit log of a site."""
        return read_audit(self.homes / site, self.key(site).public)[0]

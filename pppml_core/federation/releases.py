"""What a site gives out to open sums: each once, over enough sites (scores: over all), and noted on the disk before anything leaves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.policy import Policy
from pppml_core.federation.store import SiteStore, sites_digest
from pppml_core.federation.terms import RELEASED


@dataclass(frozen=True)
class Opening:
    """A sum of the open attempt that this site may help to open.

    Args:
        kind: ``session`` (of updates) or ``metrics`` (of scores).
        round: counted from 1.
        attempt: counted from 1 within the round.
        cohort: the sites of the attempt.
        model: hash of its model.
        splits: of scores, the sets that were scored; of updates none.
    """

    kind: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    model: bytes
    splits: tuple[str, ...] = ()

    @property
    def once_a_round(self) -> tuple[str, ...]:
        """Names under which it is released once a round: that of updates, or one for each set that was scored."""
        return (self.kind,) if self.kind == "session" else tuple(f"{self.kind} {split}" for split in self.splits)

    @property
    def once_a_run(self) -> tuple[str, ...]:
        """Names under which it is released once, whatever the round: of scores, one for each set and model."""
        return tuple(f"{self.kind} {split} {self.model.hex()}" for split in self.splits)


class Releases:
    """The rules of one site, and its record.

    Args:
        site: its name.
        store: where the record is.
        policy: what the site insists on.
        sites: all sites of the run, as this one knows them: from its own configuration, or the invitation it joined by.
        min_survivors: over how many sites a sum of updates has noise enough, :attr:`.PrivacyPlan.min_survivors`.
    """

    def __init__(self, site: str, store: SiteStore, policy: Policy, sites: Iterable[str], min_survivors: int) -> None:
        self._site, self._store, self._policy, self._sites, self._min_survivors = site, store, policy, set(sites), min_survivors

    def policy(self, kind: str) -> Policy:
        """The site's policy for one kind of sum: noise that is a share for so many sites is released in no sum over fewer."""
        fewest = max(self._policy.min_cohort, self._min_survivors if kind == "session" else 1)
        return self._policy.model_copy(update={"min_cohort": fewest})

    def held(self, opening: Opening) -> dict[str, bytes]:
        """What this attempt released of it: name -> digest of the sites. Raises PolicyRefusal where another attempt released any of it,
        or where it is of scores and the attempt is not over all sites.
        """
        self._refuse_part(opening.kind, opening.cohort)
        here, found = (opening.round, opening.attempt), dict[str, tuple[int, int, bytes]]()
        for name in opening.once_a_round:
            if (in_round := self._store.released(opening.round, name)) is not None:
                found[name] = (opening.round, *in_round)
        for name in opening.once_a_run:
            if (ever := self._store.released_ever(name)) is not None:
                found[name] = ever
        for round, attempt, _ in found.values():
            if (round, attempt) != here:
                raise PolicyRefusal(f"{RELEASED} in attempt {attempt} of round {round}", place=self._site)
        return {name: sites for name, (_, _, sites) in found.items()}

    def note(self, opening: Opening, sites: Sequence[str]) -> None:
        """Note that unmasking material for the sum over ``sites`` leaves this site now; refuse it where it left before."""
        distinct = set(sites)
        if len(distinct) != len(sites) or not distinct <= set(opening.cohort):
            raise PolicyRefusal("a sum over sites that are not of this attempt", place=self._site)
        if len(distinct) < (fewest := self.policy(opening.kind).min_cohort):
            raise PolicyRefusal(f"min_cohort: a sum over {len(distinct)} sites, at least {fewest} required", place=self._site)
        self._refuse_part(opening.kind, distinct)
        held = self.held(opening)
        if any(sites_of != sites_digest(distinct) for sites_of in held.values()):
            raise PolicyRefusal(f"{RELEASED} over other sites in this attempt", place=self._site)
        for name in (*opening.once_a_round, *opening.once_a_run):
            if name not in held:
                self._store.save_release(opening.round, opening.attempt, name, distinct)

    def _refuse_part(self, kind: str, sites: Iterable[str]) -> None:
        """Refuse scores in a sum over some sites of the run only.

        Of two sums of nearly one model, over all sites and over all but one, the difference is that one's; more sums tell more, also by
        those that a site has no part in. All sums of a run over the same sites tell nothing of fewer.
        """
        if kind == "metrics" and (lacking := self._sites - set(sites)):
            text = f"metrics: scores leave in a sum over all {len(self._sites)} sites of the run, and this one is without {min(lacking)}"
            raise PolicyRefusal(text, place=self._site)

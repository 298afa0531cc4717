"""What the runs on a site's data cost together: its own account of epsilon, kept in its home over all runs and coordinators.

``account.jsonl``, a :mod:`.chain`: one line a run, with what the site itself computed for it from the configuration it agreed to, never
what somebody announced. The whole claim is entered when the run is accepted, before anything of it leaves, and it stays there, also where
the run ends early: what a run reveals depends on rounds whose noise cannot be taken back, and a site cannot know which of them others
have kept. A run counts once, however often it is begun again.

Epsilons and deltas are added up: basic composition (Dwork and Roth 2014, section 3.5), which holds also for runs chosen one after another
in the light of what the earlier ones showed (Rogers et al. 2016, arXiv:1605.08294), and never states less than was spent. Claims for
different units of privacy are not added: an epsilon per image and one per patient have no sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.chain import Chain, ChainBroken, read_chain
from pppml_core.federation.identity import Identity
from pppml_core.federation.reason import here_only
from pppml_core.interfaces.privacy import PrivacyStatement, plain_epsilon

ACCOUNT_FILE = "account.jsonl"
#: what sums of rounded numbers may be above a limit.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class Claim:
    """What a run costs. ``epsilon`` infinite: it protects nobody; 0: nothing is shared."""

    epsilon: float
    delta: float = 0.0
    unit: str = ""
    adjacency: str = ""

    @property
    def kind(self) -> str:
        """What this is an epsilon of, in words; empty where it is one of nothing."""
        return f"{self.unit} ({self.adjacency})" if 0 < self.epsilon < math.inf else ""


def claim_of(privacy: PrivacyStatement | Mapping[str, Any], *, shares: bool) -> Claim:
    """The claim of a statement or of its plain form. What makes no claim, or one that is no such thing, is infinite."""
    if not shares:
        return Claim(0.0)
    plain = privacy.to_dict() if isinstance(privacy, PrivacyStatement) else privacy
    epsilon, delta = _number(plain.get("epsilon")), _number(plain.get("delta") or 0.0)
    unit, adjacency = plain.get("unit"), plain.get("adjacency")
    if not (epsilon < math.inf and delta < 1 and isinstance(unit, str) and unit and isinstance(adjacency, str)):
        return Claim(math.inf)
    return Claim(epsilon, delta, unit, adjacency)


def _number(value: Any) -> float:
    """Infinite where it is none, or negative."""
    return float(value) if type(value) in (int, float) and value >= 0 else math.inf


@dataclass(frozen=True)
class Limits:
    """What all runs together may cost. ``epsilon`` None: anything, and it is only written down."""

    epsilon: float | None = None
    delta: float = 1.0


class Account:
    """That of one home."""

    def __init__(self, home: Path, identity: Identity) -> None:
        self._home, self._identity = home, identity
        self._chain = Chain(home / ACCOUNT_FILE, identity, alone=True)

    def refusal(self, run: bytes, claim: Claim, limits: Limits) -> str | None:
        """Why this run would cost too much; None where it may be accepted."""
        try:
            return _refusal(read_account(self._home, self._identity.public), run, claim, limits)
        except ChainBroken as error:
            return f"this site's account cannot be relied on: {error.message}"

    def holds(self, run: bytes) -> bool:
        """Whether this run was entered. Raises ChainBroken where the account cannot be relied on."""
        return any(entry["run"] == run.hex() for entry in read_account(self._home, self._identity.public))

    def reserve(self, run: bytes, claim: Claim, limits: Limits, about: Mapping[str, Any], audit: int = 0) -> None:
        """Enter a run, once, and return when it is on the disk. Raises PolicyRefusal where it would cost too much.

        ``audit``: lines of the audit log so far, a witness against an older copy of it.
        """
        _check_there(self._home)
        with self._chain.opened() as file:  # two runs at a time cannot both take what is left
            entries = read_chain(self._chain.path, self._identity.public, locked=True)[0]
            if (reason := _refusal(entries, run, claim, limits)) is not None:
                raise PolicyRefusal(f"total_epsilon: {reason}")
            if any(entry["run"] == run.hex() for entry in entries):
                return
            cost = {"epsilon": plain_epsilon(claim.epsilon), "delta": claim.delta, "unit": claim.unit, "adjacency": claim.adjacency}
            time = datetime.now(UTC).isoformat(timespec="seconds")
            self._chain.write(file, {"time": time, "run": run.hex(), **cost, "about": dict(about), "audit": audit})


def read_account(home: Path, public: bytes, noted: str | None = None) -> list[dict[str, Any]]:
    """One entry a run, verified, in order of time. Raises ChainBroken where the account was changed or is gone.

    ``noted``: a head of it that somebody wrote down, as :func:`account_head` gives it; that line must still be there.
    """
    _check_there(home)
    return read_chain(home / ACCOUNT_FILE, public, noted)[0]


def account_head(home: Path, public: bytes) -> str:
    """What to write down of the account, away from this machine. Raises as :func:`read_account`."""
    _check_there(home)
    return str(read_chain(home / ACCOUNT_FILE, public)[1])


def _check_there(home: Path) -> None:
    if not (home / ACCOUNT_FILE).exists():
        text = "line 1 is missing: the account of what runs cost here is gone"
        raise ChainBroken(text, place=ACCOUNT_FILE, hint="restore it from a backup")


def entered(entry: Mapping[str, Any]) -> Claim:
    """The claim of an entry."""
    return Claim(float(entry["epsilon"]), float(entry["delta"]), entry["unit"], entry["adjacency"])


def total(claims: Iterable[Claim]) -> Claim:
    """All of them together. Raises PolicyRefusal where they are for different units of privacy."""
    claims = list(claims)
    if len(kinds := sorted({claim.kind for claim in claims} - {""})) > 1:
        raise PolicyRefusal(f"total_epsilon: claims for different units of privacy cannot be added: {' and '.join(kinds)}")
    some = next((claim for claim in claims if claim.kind), Claim(0.0))
    return Claim(math.fsum(c.epsilon for c in claims), math.fsum(c.delta for c in claims), some.unit, some.adjacency)


def told_account(home: Path, public: bytes) -> dict[str, Any]:
    """For people: ``runs``, all of them together in ``words``, and the ``head`` to write down."""
    entries = read_account(home, public)
    try:
        words = f"{len(entries)} runs, together {_words(total(map(entered, entries)))}"
    except PolicyRefusal as error:
        words = error.message.partition(": ")[2]
    return {
        "runs": [{name: value for name, value in entry.items() if name not in ("n", "audit")} for entry in entries],
        "words": words,
        "head": account_head(home, public),
    }


def _refusal(entries: Iterable[Mapping[str, Any]], run: bytes, claim: Claim, limits: Limits) -> str | None:
    entries = list(entries)
    before = next((entered(entry) for entry in entries if entry["run"] == run.hex()), None)
    if before is not None:
        less = claim.epsilon <= before.epsilon * _ROUNDING and claim.delta <= before.delta * _ROUNDING and claim.kind in ("", before.kind)
        if not less:
            return f"this run was accepted with epsilon {before.epsilon:g} and delta {before.delta:g}, and would now cost {_words(claim)}"
    if limits.epsilon is None:
        return None
    others = [entered(entry) for entry in entries if entry["run"] != run.hex()]
    counted = before or claim
    try:
        after = total([*others, counted])
    except PolicyRefusal as error:
        return here_only("its unit of privacy is not that of every run before it", error.message.partition(": ")[2])
    if after.epsilon <= limits.epsilon * _ROUNDING and after.delta <= limits.delta * _ROUNDING:
        return None
    spent = total(others)
    text = f"this run costs {_words(counted)}, more than is left of epsilon {limits.epsilon:g} and delta {limits.delta:g} for all runs"
    return here_only(text, f"{len(others)} others have cost {_words(spent)}")


def _words(claim: Claim) -> str:
    return f"epsilon {claim.epsilon:g}" + (f" and delta {claim.delta:g}" if claim.delta else "")

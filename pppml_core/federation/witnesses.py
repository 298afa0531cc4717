"""The two logs of a home and its folder of runs, each a witness against the others.

A log that was changed is found by its own chain; one that was put back whole, or removed with everything beside it, only by what else
remembers. So both logs are there from the first day of a home: none at all is never how a home begins. Every run that was joined by
the audit log, or begun by ``runs/``, must be in the account; one that was begun must have been joined by the audit log, and that must be as
long as the account has seen it. What a run's folder holds of attempts, releases and charges must be all that the audit log has seen of it
(:func:`refuse_older_than_log`), and all that the process that answers has seen: a copy of ``runs/`` from before would have the same
attempt answered again, with other noise. Who puts all three back together is found by a noted head alone (:func:`.chain.read_chain`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.audit import AUDIT_FILE, read_audit
from pppml_core.federation.chain import Chain, ChainBroken
from pppml_core.federation.identity import Identity
from pppml_core.federation.invitation import JOIN
from pppml_core.federation.site_ledger import ACCOUNT_FILE, read_account
from pppml_core.federation.store import SiteStore


def begin_logs(home: Path, identity: Identity) -> None:
    """Make both logs, empty; those that are there are kept."""
    for name in (AUDIT_FILE, ACCOUNT_FILE):
        with Chain(home / name, identity).opened():
            pass


def check_witnesses(home: Path, site: str, public: bytes) -> list[dict[str, Any]]:
    """The lines of the audit log. Raises ChainBroken where one of them tells of what another must know and does not."""
    lines, entries = read_audit(home, public)[0], read_account(home, public)
    entered = {entry["run"] for entry in entries}
    joined = _joined(lines)
    begun = {path.parent.parent.name for path in (home / "runs").glob(f"*/{site}/attempts")}
    if unknown := sorted((joined | begun) - entered):
        text = f"it tells nothing of {len(unknown)} runs that this site took part in, first {unknown[0][:8]}: an older copy was put back"
        raise ChainBroken(text, place=ACCOUNT_FILE, hint="put the newest copy back")
    if unsaid := sorted(begun - joined):
        text = f"it tells nothing of {len(unsaid)} runs that this site took part in, first {unsaid[0][:8]}: an older copy was put back"
        raise ChainBroken(text, place=AUDIT_FILE, hint="put the newest copy back")
    if (seen := max((int(entry.get("audit", 0)) for entry in entries), default=0)) > len(lines):
        text = f"line {len(lines) + 1} is missing: the account has seen {seen} lines of it, so an older copy was put back"
        raise ChainBroken(text, place=AUDIT_FILE, hint="put the newest copy back")
    return lines


def refuse_older(home: Path, site: str, run: bytes, seen: Mapping[str, int]) -> dict[str, int]:
    """How many entries each record of a run has by now. Raises PolicyRefusal where one has fewer than it was ``seen`` with before."""
    held = _held(home, site, run.hex())
    if short := _short(held, seen):
        text = f"joined: what this site holds of run {run.hex()[:8]} is an older copy ({short}), so it takes part in it no more"
        raise PolicyRefusal(text, hint="begin a new run")
    return held


def refuse_older_than_log(home: Path, site: str, lines: Sequence[Mapping[str, Any]], run: bytes) -> bool:
    """Whether the audit log, of which these are the lines, tells that a run was joined. Raises PolicyRefusal where what is held of it is
    older than what the log has seen, or was begun and the log tells of no join.
    """
    held, said = refuse_older(home, site, run, _seen(lines).get(run.hex(), {})), run.hex() in _joined(lines)
    if any(held.values()) and not said:
        text = f"joined: the audit log does not tell of run {run.hex()[:8]}, which was begun here: an older copy of it was put back"
        raise PolicyRefusal(text, hint="put the newest copy back")
    return said


def check_runs(home: Path, site: str, public: bytes) -> None:
    """Raise ChainBroken where a run's folder is older than what the audit log has seen of it. That run is over, others are not."""
    for run, seen in _seen(read_audit(home, public)[0]).items():
        if (home / "runs" / run).is_dir() and (short := _short(_held(home, site, run), seen)):
            hint = "put the newest copy back; where it is lost, remove this folder and begin new runs only: this one is over here"
            raise ChainBroken(f"an older copy was put back, or files of it are gone: {short}", place=f"runs/{run}", hint=hint)


def _joined(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    return {line["run"] for line in lines if line["stage"] == JOIN and line["kind"] == "reply"}


def _held(home: Path, site: str, run: str) -> dict[str, int]:
    return SiteStore(home / "runs" / run / site).records()


def _seen(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Run -> the most entries that each of its records ever had."""
    found: dict[str, dict[str, int]] = {}
    for line in lines:
        seen = found.setdefault(line["run"], {})
        for name, count in line.get("about", {}).get("records", {}).items():
            seen[name] = max(count, seen.get(name, 0))
    return found


def _short(held: Mapping[str, int], seen: Mapping[str, int]) -> str:
    return ", ".join(f"{name} has {held.get(name, 0)} of {count} entries" for name, count in seen.items() if held.get(name, 0) < count)

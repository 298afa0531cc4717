"""The two logs of a home and its folder of runs, each a witness against the others.

A log that was changed is found by its own chain; one that was put back whole, or removed with everything beside it, only by what else
remembers. So both logs are there from the first day of a home: none at all is never how a home begins. Every run that was joined by
the audit log, or begun by ``runs/``, must be in the account; one that was begun must have been joined by the audit log, and that must be as
long as the account has seen it. Who puts all three back together is found by a noted head alone (:func:`.chain.read_chain`).
"""

from __future__ import annotations

from pathlib import Path

from pppml_core.federation.audit import AUDIT_FILE, read_audit
from pppml_core.federation.chain import Chain, ChainBroken
from pppml_core.federation.identity import Identity
from pppml_core.federation.invitation import JOIN
from pppml_core.federation.site_ledger import ACCOUNT_FILE, read_account


def begin_logs(home: Path, identity: Identity) -> None:
    """Make both logs, empty; those that are there are kept."""
    for name in (AUDIT_FILE, ACCOUNT_FILE):
        with Chain(home / name, identity).opened():
            pass


def check_witnesses(home: Path, site: str, public: bytes) -> None:
    """Raise ChainBroken where one of them tells of what another must know and does not."""
    lines, entries = read_audit(home, public)[0], read_account(home, public)
    entered = {entry["run"] for entry in entries}
    joined = {line["run"] for line in lines if line["stage"] == JOIN and line["kind"] == "reply"}
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

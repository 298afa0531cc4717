"""What `pppml site check` looks at: whether a home is in order, and what this site would say to a run, before anybody is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pppml_core.config import resolve, to_plain
from pppml_core.errors import PppmlError
from pppml_core.federation.admission import ANNOUNCED, BUILT, DESCRIBED, Case, Check, describe, model_hash
from pppml_core.federation.audit import read_audit
from pppml_core.federation.checks import own_misfits
from pppml_core.federation.code import ELSEWHERE
from pppml_core.federation.home import Home, open_home
from pppml_core.federation.identity import load_identity
from pppml_core.federation.invitation import Invitation, announced
from pppml_core.federation.own_parts import own_parts
from pppml_core.federation.policy import Policy, load_policy
from pppml_core.federation.site_file import engine_of, load_site_file
from pppml_core.federation.site_host import SiteHost
from pppml_core.federation.site_ledger import Account, entered, read_account, total
from pppml_core.federation.timetable import TIMETABLE, local_time
from pppml_core.federation.witnesses import check_runs, check_witnesses
from pppml_core.interfaces.engine import Job
from pppml_core.randomness import entropy
from pppml_core.registry import Registry
from pppml_core.wire.messages import SERVER

#: rules that are held where they matter, in every round, and say nothing of a run beforehand.
IN_ROUNDS = ("min_honest", "min_degree", "vet_weights")


@dataclass(frozen=True)
class Row:
    """One line: what was looked at, whether it is in order, and what is said of it."""

    what: str
    ok: bool
    says: str


def check_home(folder: Path) -> list[Row]:
    """Whether a home is in order. Never raises for one that is not."""
    looks: dict[str, Callable[[Path], str]] = {
        "identity": lambda home: f"{open_home(home).name}, readable by its owner only",
        "roster": _roster,
        "policy": _policy,
        "site.yaml": _site_file,
        "account": _account,
        "audit log": _audit,
        "witnesses": _witnesses,
    }
    return [_look(what, look, folder) for what, look in looks.items()]


def _look(what: str, look: Callable[[Path], str], folder: Path) -> Row:
    try:
        return Row(what, True, look(folder))
    except (PppmlError, OSError) as error:
        return Row(what, False, str(error))


def _roster(folder: Path) -> str:
    home = open_home(folder)
    others = [name for name in home.pinned if name != home.name]
    if SERVER not in (*others, home.name):
        raise PppmlError("no coordinator is pinned, so nobody can invite this site", hint=f"pppml site trust --home {folder} server FILE")
    return f"{len(others)} other parties pinned: {', '.join(sorted(others))}"


def _policy(folder: Path) -> str:
    idle = [name for name, value in load_policy(folder) if value is None]
    return f"every rule stands in it{'; null, so nothing is asked: ' if idle else ''}{', '.join(idle)}"


def _site_file(folder: Path) -> str:
    found = load_site_file(folder)
    engine = "no engine" if found.engine is None else f"engine {getattr(engine_of(folder, Registry.discover()), 'use', '')}"
    if found.data is not None and not (folder.absolute() / Path(found.data).expanduser()).exists():
        raise PppmlError(f"there is nothing at {found.data}", place="site.yaml: data", hint="correct the path")
    return f"{'no data' if found.data is None else f'data at {found.data}'}, {engine}"


def _account(folder: Path) -> str:
    entries = read_account(folder, load_identity(folder).public)
    spent = total(map(entered, entries))
    return f"{len(entries)} runs, together epsilon {spent.epsilon:g} and delta {spent.delta:g}"


def _audit(folder: Path) -> str:
    lines, head = read_audit(folder, load_identity(folder).public)
    return f"{len(lines)} messages, every line in order; head {head}"


def _witnesses(folder: Path) -> str:
    home = open_home(folder)
    check_witnesses(folder, home.name, home.public)
    check_runs(folder, home.name, home.public)
    return "account, audit log and runs/ agree"


def check_run(folder: Path, source: str | Path | Mapping[str, Any], registry: Registry | None = None) -> tuple[list[Row], dict[str, Any]]:
    """What this site would say to a run of this configuration, rule by rule, and what may be pinned of it.

    Nothing is built of names and code that the policy does not let run. Raises PppmlError for a home or a configuration that is not in
    order.
    """
    registry = registry or Registry.discover()
    home, policy = open_home(folder), load_policy(folder)
    config = resolve(source, registry=registry)
    plain = {section: value for section, value in to_plain(config).items() if section not in ELSEWHERE}
    case = Case(home, policy, Invitation(entropy(16), plain, (), {}, {}, {}), Account(folder, load_identity(folder)))
    describe(case, registry)
    case.asked = Invitation(case.asked.run, plain, (), {}, {name: code.to_dict() for name, code in case.code.items()}, {})
    rows = list(_said(DESCRIBED, case))
    facts: dict[str, Any] = {"code": {name: code.to_dict() for name, code in sorted(case.code.items())}}
    if all(row.ok for row in rows):
        _build(case, registry)
        rows = [*_said(ANNOUNCED, case), *_timetable(policy, home), *rows, *_said(BUILT, case), *_data(case)]
        facts |= {"examples": len(case.parts.load(home.name).train), "model": model_hash(case.parts)}
    return _ordered(rows), facts


def _build(case: Case, registry: Registry) -> None:
    """The parts of the run as this site builds them, and what a coordinator who does not lie would announce."""
    asked, home = case.asked, case.home
    sizes = asked.config.get("sites") or _sizes(case, registry)
    job = Job(asked.run, asked.config, home.folder / "runs" / asked.run.hex(), tuple(sizes), sizes, {}, {home.name: home.folder})
    case.host = SiteHost(Job(**{**vars(job), "parts": own_parts(job, home.name, registry)}))
    case.asked = Invitation(asked.run, asked.config, job.sites, sizes, asked.code, announced(case.parts, sizes))


def _sizes(case: Case, registry: Registry) -> dict[str, int]:
    """Of a configuration whose data are all here."""
    name, folder = case.home.name, case.home.folder
    parts = own_parts(Job(case.asked.run, case.asked.config, folder, (), {}, {}, {name: folder}), name, registry)
    return {site.slug: len(parts.load(site.slug).train) for site in parts.task.sites()}


def _said(checks: Mapping[str, Check], case: Case) -> Iterator[Row]:
    for name, check in checks.items():
        reason = check(case)
        yield Row(name, reason is None, "ok" if reason is None else f"refused: {reason}")


def _timetable(policy: Policy, home: Home) -> Iterator[Row]:
    for name, check in TIMETABLE.items():
        reason = check(policy, home.folder, local_time(), "")
        yield Row(name, reason is None, "ok" if reason is None else f"refused now: {reason}")


def _data(case: Case) -> Iterator[Row]:
    assert case.host is not None
    wrong = own_misfits(case.parts, case.home.name, case.host.privacy)
    yield Row("data", not wrong, "; ".join(wrong) or "ok")


def _ordered(rows: list[Row]) -> list[Row]:
    """One row a rule, a refusal before a consent: first what is not a rule of the policy, then the policy's rules in their order."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.what not in found or not row.ok:
            found[row.what] = row
    held = {name: Row(name, True, "held in every round") for name in IN_ROUNDS}
    rules = {name: (found | held)[name] for name in Policy.model_fields if name in found | held}
    return [*(row for name, row in found.items() if name not in rules), *rules.values()]

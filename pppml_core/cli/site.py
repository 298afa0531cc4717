"""``pppml site``: who this site is, whom it trusts, what it insists on, and what has left it."""

from __future__ import annotations

from pathlib import Path

import click

HOME = click.option(
    "--home", required=True, type=click.Path(path_type=Path, file_okay=False), help="This party's folder; it never leaves it."
)


@click.group()
def command() -> None:
    """Set up and run a party of a real federation: its identity, its policy, and the parties it trusts.

    \b
      pppml site init  --home ~/pppml --name clinic_a
      pppml site trust --home ~/pppml clinic_b clinic_b.pub
      pppml site check --home ~/pppml study.yaml
      pppml site run   --home ~/pppml
      pppml site show  --home ~/pppml
      pppml site audit --home ~/pppml

    Every party does the first once, and the second once for each other party, the coordinator (`server`) included. Secure sums refuse
    whoever is not pinned, so no server can put a key of its own in another party's place. What a site insists on is in its policy.yaml.
    """  # noqa: D301 - click wants the control character


@command.command()
@HOME
@click.option("--name", required=True, metavar="SLUG", help="Small letters, digits and _; `server` for the coordinator.")
def init(home: Path, name: str) -> None:
    """Make an identity, a policy.yaml and a site.yaml to edit.

    \b
      pppml site init --home ~/pppml --name clinic_a

    identity.key is secret: back it up, give it to nobody. identity.pub is for the other parties. Every rule stands in policy.yaml, with
    what it means; a site whose policy.yaml lacks one answers nothing.
    """  # noqa: D301
    from pppml_core.federation.home import init_home
    from pppml_core.federation.identity import fingerprint

    made = init_home(home, name, careful=True)
    click.echo(f"{made.name} is ready in {home}\nfingerprint: {fingerprint(made.public)}\n\nNext:")
    if (home / "policy.yaml").exists():
        click.echo(f"  read and edit {home / 'policy.yaml'} (what may leave) and {home / 'site.yaml'} (where the data are)")
        click.echo("  set total_epsilon there if runs shall be bounded: once a run without a claim was accepted, no limit holds any more")
    click.echo(f"  send {home / 'identity.pub'} to every other party, and read them the fingerprint over the telephone")
    click.echo(f"  pppml site trust --home {home} NAME FILE, for the file of each of them")


@command.command()
@HOME
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(home: Path, as_json: bool) -> None:
    """Print this party's name, public identity and fingerprint, whom it trusts, and what the runs on its data cost.

    The account is this site's own: epsilon and delta of every run it accepted, as it computed them itself, added up.
    """
    import json

    from pppml_core.federation.home import open_home
    from pppml_core.federation.site_ledger import told_account
    from pppml_core.wire.messages import SERVER

    made = open_home(home)
    none = {"runs": [], "words": "", "head": ""}  # a coordinator has no data
    about = {**made.to_dict(), "account": none if made.name == SERVER else told_account(home, made.public)}
    if as_json:
        click.echo(json.dumps(about, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    click.echo(f"name         {about['name']}\npublic       {about['public']}\nfingerprint  {about['fingerprint']}\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("pinned", "fingerprint", ""):
        table.add_column(column, no_wrap=True)
    for name, key in about["pinned"].items():
        table.add_row(name, key["fingerprint"], "this party" if name == about["name"] else "")
    Console(soft_wrap=True).print(table)
    if about["account"]["runs"]:
        table = Table(box=None, pad_edge=False, header_style="bold", title="\nthe account", title_justify="left")
        for column in ("accepted", "run", "epsilon", "delta", "unit"):
            table.add_column(column)
        for run in about["account"]["runs"]:
            table.add_row(run["time"], run["about"]["name"], *(str(run[name]) for name in ("epsilon", "delta", "unit")))
        Console(soft_wrap=True).print(table)
        click.echo(f"\n{about['account']['words']}. Head to write down:\n{about['account']['head']}")


@command.command()
@HOME
@click.argument("name")
@click.argument("public", metavar="PUBLIC_KEY_OR_FILE")
@click.option("--fingerprint", "told", metavar="DIGITS", help="The fingerprint its owner told you; it must fit.")
@click.option("--yes", is_flag=True, help="Do not ask: the key came over a channel you trust.")
def trust(home: Path, name: str, public: str, told: str | None, yes: bool) -> None:
    """Pin the key of another party: from then on, only it may speak for NAME.

    \b
      pppml site trust --home ~/pppml clinic_b clinic_b.pub
      pppml site trust --home ~/pppml server server.pub --fingerprint "3c1f 09ab ..."

    Compare the fingerprint with its owner over another channel than the one the key came by. A pinned key is never replaced.
    """  # noqa: D301
    from pppml_core.errors import ConfigError
    from pppml_core.federation.home import check_fingerprint, open_home, read_public
    from pppml_core.federation.identity import fingerprint, pin

    open_home(home)
    key = read_public(public, name)
    click.echo(f"{name}: {fingerprint(key)}")
    if told is not None:
        check_fingerprint(key, told)
    elif not yes:
        try:
            yes = click.confirm(f"Did {name} tell you these digits over another channel?")
        except click.Abort:
            click.echo()
        if not yes:
            raise ConfigError("not confirmed; nothing was pinned", place=name, hint='or give what you were told: --fingerprint "..."')
    pin(home, name, key)
    click.echo(f"{name} is pinned.")


@command.command()
@HOME
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def check(ctx: click.Context, home: Path, config: Path | None, as_json: bool) -> None:
    """Look whether the home is in order, or what this site would say to a run.

    \b
      pppml site check --home ~/pppml                 identity, roster, policy, site.yaml, logs
      pppml site check --home ~/pppml study.yaml      every rule against this run, before anybody is asked

    Nobody is reached and nothing is trained. Code that the policy does not let run is not run here either. With a config it also prints
    the hashes that `code` and `models` of policy.yaml may hold. Exit code 2 where anything is refused or not in order.
    """  # noqa: D301
    import json

    from pppml_core.federation.site_check import check_home, check_run

    rows, facts = (check_home(home), {}) if config is None else check_run(home, config)
    if as_json:
        click.echo(json.dumps({"rows": [vars(row) for row in rows], **facts}, indent=2))
    else:
        width = max(len(row.what) for row in rows)
        for row in rows:
            click.echo(f"{'ok' if row.ok else 'NO':<4}{row.what:<{width + 2}}{'' if row.says == 'ok' else row.says}".rstrip())
        if facts:
            click.echo(
                f"\ntraining examples here: {facts.get('examples', 'not looked at')}\nmodels: [{facts.get('model', 'not built')}]\ncode:"
            )
        for name, code in facts.get("code", {}).items():
            click.echo(f'  {name}: {{version: "{code["version"]}", sha256: {code["sha256"]}}}')
    ctx.exit(0 if all(row.ok for row in rows) else 2)


@command.command()
@HOME
@click.pass_context
def run(ctx: click.Context, home: Path) -> None:
    """Be this site: wait for runs, take part in those that the policy allows.

    \b
      pppml site run --home ~/pppml

    The engine that reaches the coordinator, and where the data are, stand in site.yaml. It runs until it is stopped (Ctrl-C, SIGTERM).
    Stopped and started again it goes on; of the round it was in the middle of, it is a dropout. What it does stands in log.jsonl.
    """  # noqa: D301
    import os
    import signal

    from pppml_core.federation.home import open_home
    from pppml_core.federation.policy import load_policy
    from pppml_core.federation.site_file import engine_of
    from pppml_core.registry import Registry
    from pppml_core.wire.messages import SERVER

    made = open_home(home)
    if made.name != SERVER:
        load_policy(home)  # what is wrong with it is told before anybody is reached
    registry = Registry.discover()
    engine = registry.build("engine", engine_of(home, registry))
    os.umask(0o077)  # whatever this process and its children write is its owner's alone
    click.echo(f"{made.name} serves; stop it with Ctrl-C")
    # How services and containers are stopped: the engine ends what it has started, as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ctx.exit(engine.serve(home))
    finally:
        signal.signal(signal.SIGTERM, before)


@command.command()
@HOME
@click.option("--head", "noted", metavar="'COUNT HASH'", help="A head that you wrote down: that line must still be there.")
@click.option("--account-head", "spent", metavar="'COUNT HASH'", help="The same of the account, as `pppml site show` prints it.")
@click.option("--json", "as_json", is_flag=True, help="Print every line as JSON.")
def audit(home: Path, noted: str | None, spent: str | None, as_json: bool) -> None:
    """Verify and sum up the log of every message that left this site.

    \b
      pppml site audit --home ~/pppml
      pppml site audit --home ~/pppml --head "26 9c41..."

    Every line holds the hash of the one before and is signed by this site. Exit code 1, and the number of the first line that is not right,
    where a line was changed, removed, added or moved, and where log, account and runs/ do not agree. Write down the heads now and then,
    away from this machine: against them even logs that were written anew as a whole are found out.
    """  # noqa: D301
    import json

    from pppml_core.federation.audit import by_run, read_audit
    from pppml_core.federation.home import open_home
    from pppml_core.federation.site_ledger import read_account
    from pppml_core.federation.witnesses import check_runs, check_witnesses

    made = open_home(home)
    lines, head = read_audit(home, made.public, noted)
    read_account(home, made.public, spent)
    check_witnesses(home, made.name, made.public)
    check_runs(home, made.name, made.public)
    if as_json:
        click.echo(json.dumps({"lines": lines, "head": str(head)}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "first message", "messages", "bytes", "what"):
        table.add_column(column, justify="right" if column in ("messages", "bytes") else "left")
    for one in by_run(lines):
        kinds = ", ".join(f"{count} {kind}" for kind, count in one["kinds"].items())
        table.add_row(one["run"][:8], one["first"][:19], str(one["messages"]), f"{one['bytes']:,}", kinds)
    Console(soft_wrap=True).print(table)
    click.echo(f"\n{len(lines)} messages, every line in order. Head to write down:\n{head}")

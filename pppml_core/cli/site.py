"""``pppml site init|show|trust``: who this site is, and whom it trusts."""

from __future__ import annotations

from pathlib import Path

import click

HOME = click.option(
    "--home", required=True, type=click.Path(path_type=Path, file_okay=False), help="This party's folder; it never leaves it."
)


@click.group()
def command() -> None:
    """Set up a party of a real federation: its identity, its policy, and the parties it trusts.

    \b
      pppml site init  --home ~/pppml --name clinic_a
      pppml site show  --home ~/pppml
      pppml site trust --home ~/pppml clinic_b clinic_b.pub

    Every party does the first once and the last once for each other party, the coordinator (`server`) included. Secure sums refuse
    whoever is not pinned, so no server can put a key of its own in another party's place.
    """  # noqa: D301 - click wants the control character


@command.command()
@HOME
@click.option("--name", required=True, metavar="SLUG", help="Small letters, digits and _; `server` for the coordinator.")
def init(home: Path, name: str) -> None:
    """Make an identity, and a policy.yaml to edit.

    \b
      pppml site init --home ~/pppml --name clinic_a

    identity.key is secret: back it up, give it to nobody. identity.pub is for the other parties.
    """  # noqa: D301
    from pppml_core.federation.home import init_home
    from pppml_core.federation.identity import fingerprint

    made = init_home(home, name)
    click.echo(f"{made.name} is ready in {home}\nfingerprint: {fingerprint(made.public)}\n\nNext:")
    if (home / "policy.yaml").exists():
        click.echo(f"  read and edit {home / 'policy.yaml'}")
    click.echo(f"  send {home / 'identity.pub'} to every other party, and read them the fingerprint over the telephone")
    click.echo(f"  pppml site trust --home {home} NAME FILE, for the file of each of them")


@command.command()
@HOME
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(home: Path, as_json: bool) -> None:
    """Print this party's name, public identity and fingerprint, and whom it trusts."""
    import json

    from pppml_core.federation.home import open_home

    about = open_home(home).to_dict()
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

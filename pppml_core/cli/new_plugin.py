"""``pppml new-plugin NAME --kind KIND``: a plugin folder that works, with a test, to start from."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import click

from pppml_core.component import KINDS
from pppml_core.errors import ConfigError, nearest

#: Where in a config a component of a kind is named.
USAGE = {
    "attack": "attacks: [{{use: {name}, vantage: server}}]",
    "reporter": "reporters: [console, jsonl, {name}]",
}


def kinds() -> list[str]:
    """The kinds that have a template."""
    return [kind for kind in KINDS if (_template() / kind).is_dir()]


def write_plugin(name: str, kind: str, folder: Path) -> Path:
    """Write a plugin for one component of that name and kind into a new folder below ``folder``; returns the new folder.

    The component ``my-sum`` becomes the distribution ``pppml-my-sum``, the package ``pppml_my_sum`` and the folder ``my_sum``. Raises
    ConfigError for a name that no config could hold, a kind without a template, and a folder that is there already.
    """
    name = name.removeprefix("pppml-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        hint = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789") or "my-plugin"
        raise ConfigError(f"{name!r} is no name of a component: lower case words joined by `-`", place="NAME", hint=f"try {hint}")
    if kind not in kinds():
        close = nearest(kind, kinds())
        hint = f"did you mean {close}?" if close else f"one of: {', '.join(kinds())}"
        raise ConfigError(f"there is no template for the kind {kind!r}", place="--kind", hint=hint)
    target = folder / name.replace("-", "_")
    if target.exists():
        raise ConfigError("is there already; nothing was written", place=str(target), hint="take another name, or another folder with -o")
    for path, text in _render(name, kind).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
    return target


def _template() -> Path:
    # By name, not by import: testing is above every floor.
    return Path(str(files("pppml_core"))) / "testing" / "template"


def _render(name: str, kind: str) -> dict[str, str]:
    from jinja2 import Environment, StrictUndefined

    package, words = f"pppml_{name.replace('-', '_')}", name.split("-")
    own = {path.name.removesuffix(".j2"): path for path in (_template() / kind).glob("*.j2")}
    (subject,) = own.keys() - {"config.py", "test.py"}
    values = {
        "name": name,
        "kind": kind,
        "hook": KINDS[kind],
        "distribution": f"pppml-{name}",
        "package": package,
        "cls": "".join(word.capitalize() for word in words),
        "title": " ".join(words).capitalize(),
        "subject": subject.removesuffix(".py"),
        "summary": f"a new {kind}: say here in one line what it does",
        "settings": (_template() / kind / "settings.md").read_text(encoding="utf-8"),
        "usage": USAGE.get(kind, "{kind}: {name}").format(kind=kind, name=name),
    }
    place = {"pyproject.toml": "pyproject.toml", "README.md": "README.md", "test.py": f"tests/test_{name.replace('-', '_')}.py"}
    templates = {path.name.removesuffix(".j2"): path for path in (_template() / "common").glob("*.j2")} | own
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return {
        place.get(file, f"src/{package}/{file}"): jinja.from_string(path.read_text(encoding="utf-8")).render(values)
        for file, path in templates.items()
    }


@click.command("new-plugin")
@click.argument("name")
@click.option("--kind", required=True, metavar="KIND", help=f"What it offers: {', '.join(kinds())}.")
@click.option(
    "-o", "folder", type=click.Path(path_type=Path, file_okay=False), default=".", help="Where to put its folder.  [default: here]"
)
def command(name: str, kind: str, folder: Path) -> None:
    """Write a plugin that works and is tested, as a place to start from."""
    target = write_plugin(name, kind, folder)
    click.echo(f"{target} is ready. Next:\n  pip install -e {target}\n  pytest {target / 'tests'}\n  pppml plugins")

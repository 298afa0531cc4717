"""The parts of a run as one site builds them, with its own data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pppml_core.config import Document, resolve
from pppml_core.errors import ConfigError, PolicyRefusal
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.places import names_a_place
from pppml_core.federation.site_file import SITE_FILE, read_site_file
from pppml_core.interfaces.engine import Job
from pppml_core.registry import Registry


def own_parts(job: Job, site: str, registry: Registry) -> Assembly:
    """The announced config with the site's own settings of the task laid over it.

    Raises ConfigError for settings that do not fit the task, PolicyRefusal for announced ones that name places on this machine, and
    DataError for data that cannot be described.
    """
    config, home = job.config, job.home(site)
    own, document = read_site_file(home)
    elsewhere = config.get("sites") is not None
    if own.data is None and not own.task and not elsewhere:
        return Assembly.build(resolve(config, registry=registry), registry, at=site)
    if own.data is None and elsewhere and config["task"].get("path") is not None:
        text = "the run leaves it to each site to say where its data are, and this site has not said it"
        raise ConfigError(text, place=str(home / SITE_FILE), hint="add a line `data: PATH`")
    announced = {name: value for name, value in config["task"].items() if name not in ("path", *own.task)}
    if reached := next(_places("task", announced), None):
        text = f"{reached} names a place on this machine, and where this site reads and writes only its own people say"
        raise PolicyRefusal(text, hint="they may set it in site.yaml, under `task`")
    task, places = dict(own.task), {path: line for path, line in document.places.items() if path[:1] == ("task",)}
    if own.data is not None:
        task["path"] = str(home.absolute() / Path(own.data).expanduser())
        places["task", "path"] = document.places["data",]
    # (a map that came as a message has lost the order of the sites)
    named = {"sites": {name: job.sizes[name] for name in job.sites}} if job.sites and (elsewhere or own.data is not None) else {}
    laid = Document({**config, **named, "task": {**config["task"], **task}}, places)
    return Assembly.build(resolve(laid, registry=registry), registry, at=site)


def _places(name: str, value: Any) -> Iterator[str]:
    """Names of the settings that name a place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _places(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _places(name, inner)
    elif isinstance(value, str) and names_a_place(value):
        yield name

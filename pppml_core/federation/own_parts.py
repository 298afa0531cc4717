"""The parts of a run as one site builds them, with its own data."""

from __future__ import annotations

from pathlib import Path

from pppml_core.config import Document, resolve
from pppml_core.errors import ConfigError
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.site_file import SITE_FILE, read_site_file
from pppml_core.interfaces.engine import Job
from pppml_core.registry import Registry


def own_parts(job: Job, site: str, registry: Registry) -> Assembly:
    """The announced config with the site's own settings of the task laid over it.

    Raises ConfigError for settings that do not fit the task, and DataError for data that cannot be described.
    """
    config, home = job.config, job.home(site)
    own, document = read_site_file(home)
    elsewhere = config.get("sites") is not None
    if own.data is None and not own.task and not elsewhere:
        return Assembly.build(resolve(config, registry=registry), registry, at=site)
    if own.data is None and elsewhere and config["task"].get("path") is not None:
        text = "the run leaves it to each site to say where its data are, and this site has not said it"
        raise ConfigError(text, place=str(home / SITE_FILE), hint="add a line `data: PATH`")
    task, places = dict(own.task), {path: line for path, line in document.places.items() if path[:1] == ("task",)}
    if own.data is not None:
        task["path"] = str(home.absolute() / Path(own.data).expanduser())
        places["task", "path"] = document.places["data",]
    # (a map that came as a message has lost the order of the sites)
    named = {"sites": {name: job.sizes[name] for name in job.sites}} if elsewhere or own.data is not None else {}
    laid = Document({**config, **named, "task": {**config["task"], **task}}, places)
    return Assembly.build(resolve(laid, registry=registry), registry, at=site)

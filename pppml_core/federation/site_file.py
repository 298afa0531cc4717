"""``site.yaml`` in a site's home: where its own data are, and how the site is reached. It stays there; no coordinator learns of it.

A run's config says what is asked of the data, the same of every site. What only a site can know, above all a path, is laid over it for
this site alone; the announced config stays what was signed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pppml_core.component import OF_ANY_TASK, ComponentConfig
from pppml_core.config import Document, load_yaml, resolve
from pppml_core.errors import ConfigError, nearest
from pppml_core.federation.identity import refuse_writable
from pppml_core.registry import Registry

SITE_FILE = "site.yaml"
#: What every site of a run must have alike, or what a task setting is not.
_NOT_ITS_OWN = ("use", *OF_ANY_TASK)


class SiteFile(BaseModel):
    """What is this site's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str | None = Field(
        None, min_length=1, description="this site's data, a file or folder as the task reads it; from this folder on where it is relative"
    )
    task: dict[str, Any] = Field(
        default_factory=dict,
        description="further settings of the task that are this site's own, such as {window: [-1000, 400]}; each replaces the run's",
    )
    engine: str | dict[str, Any] | None = Field(
        None, description="how `pppml site run` reaches the coordinator: an engine and its settings, such as {use: flower, superlink: ...}"
    )


def load_site_file(home: Path) -> SiteFile:
    """That of a home; nothing is set where there is none. Raises ConfigError that names line and remedy."""
    return read_site_file(home)[0]


def read_site_file(home: Path) -> tuple[SiteFile, Document]:
    """The same, and the document with the place of each entry."""
    path = home / SITE_FILE
    if misspelt := next((p for p in (home / "site.yml", home / "site.json") if os.path.lexists(p)), None):
        raise ConfigError(f"it is read from {SITE_FILE} only", place=str(misspelt), hint=f"rename it to {SITE_FILE}")
    if not os.path.lexists(path):
        return SiteFile(), Document({}, name=str(path))
    if not path.is_file():
        raise ConfigError("this is no file", place=str(path), hint="restore it, or remove it")
    refuse_writable(path)
    document, known = load_yaml(path), SiteFile.model_fields
    try:
        found = SiteFile.model_validate(document.data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, place = str(first["loc"][0]), document.place((str(first["loc"][0]),))
        if first["type"] == "extra_forbidden":
            close = nearest(name, known)
            hint = f"did you mean {close!r}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"unknown setting {name!r}", place=place, hint=hint) from error
        said = f"{first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r:.80}"
        raise ConfigError(said, place=place, hint=f"{name}: {known[name].description}") from error
    for name in found.task:
        if name in _NOT_ITS_OWN or name == "path":
            hint = "write it as `data`" if name == "path" else "it is the same at every site, as the coordinator configured it"
            raise ConfigError(f"{name!r} is no setting for this place", place=document.place(("task", name)), hint=hint)
    return found, document


def engine_of(home: Path, registry: Registry) -> ComponentConfig:
    """The engine by which a site is reached, bound. Raises ConfigError where ``site.yaml`` names none, or with settings that do not fit."""
    own, document = read_site_file(home)
    if own.engine is None:
        hint = "add, for example, `engine: nvflare`; `pppml plugins` lists what is installed"
        raise ConfigError("no engine is named, so nobody can reach this site", place=str(home / SITE_FILE), hint=hint)
    # Bound like that of a run, for the same words about what does not fit; a run must have a task.
    places = {path: line for path, line in document.places.items() if path[:1] == ("engine",)}
    return resolve(Document({"task": "tiny", "engine": own.engine}, places), registry=registry).engine


def site_template() -> str:
    """``site.yaml`` with everything explained and commented out."""
    return "# What is this site's own. It stays here; a coordinator asks for a task and never learns where its data are.\n" + "".join(
        f"\n# {field.description}\n# {name}: {_EXAMPLES[name]}\n" for name, field in SiteFile.model_fields.items()
    )


_EXAMPLES: Mapping[str, str] = {"data": "/data/study", "task": "{}", "engine": "nvflare"}

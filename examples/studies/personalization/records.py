"""What a run folder says of itself: its settings, and the gradient evaluations it took. Nothing is trained or built to know it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pppml_core.config import Difference, diff
from pppml_core.errors import ConfigError

DONE, NEW_SITE, CONFIG = "job.json", "new-site.json", "config.resolved.yaml"
#: what methods of one task may differ in; the number of steps goes with a method's gradient evaluations a step.
OF_METHOD = ("personalization", "training.steps")


def config_of(folder: Path) -> dict[str, Any]:
    """``config.resolved.yaml``."""
    return dict(yaml.safe_load((folder / CONFIG).read_text("utf-8")))


def plan_of(folder: Path) -> dict[str, Any]:
    """``plan.json``."""
    return dict(json.loads((folder / "plan.json").read_text("utf-8")))


def job_of(folder: Path) -> dict[str, Any]:
    """``job.json``."""
    return dict(json.loads((folder / DONE).read_text("utf-8")))


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config without what changes no number: names, reporters, the engine, the folder of the data (not the file's name)."""
    plain = {key: value for key, value in config.items() if key not in ("reporters", "engine")}
    plain["run"] = {key: value for key, value in plain["run"].items() if key != "name"}
    if path := plain["task"].get("path"):
        plain["task"] = {**plain["task"], "path": Path(path).name}
    return plain


def said(differences: list[Difference]) -> str:
    """For an error."""
    return ", ".join(str(one) for one in differences)


def refuse_mixed(folders: Mapping[str, Mapping[int, Path]]) -> None:
    """Raise ConfigError unless the runs (method -> seed -> folder) may stand in one table.

    Seeds of a method differ in ``run.seed`` alone, methods in :data:`OF_METHOD` besides.
    """
    first: Path | None = None
    for seeds in folders.values():
        own: Path | None = None
        for seed, folder in seeds.items():
            found = comparable(config_of(folder))
            if found["run"]["seed"] != seed:
                raise ConfigError(f"this run has seed {found['run']['seed']}", place=str(folder), hint="delete the folder and run it again")
            for other, but in ((own, ()), (first, OF_METHOD)):
                before = comparable(config_of(other)) if other else found
                differences = [d for d in diff(before, found) if d.path != "run.seed" and not d.path.startswith(but)]
                if differences:
                    raise ConfigError(
                        f"this run cannot stand in one table with {other}: {said(differences)}",
                        place=str(folder),
                        hint="delete what is out of date and run it again, or run all of it into another --out",
                    )
            own, first = own or folder, first or folder


def training_gradients(folder: Path) -> dict[str, int]:
    """Site -> gradient evaluations of training over the whole run."""
    training, rounds = plan_of(folder)["training"], config_of(folder)["run"]["rounds"]
    return {site: rounds * steps * training["gradient_calls"] for site, steps in training["steps"].items()}


def adapting_gradients(config: Mapping[str, Any], setting: str | None, examples: int) -> int:
    """Gradient evaluations after training, before a site with so many training examples is scored.

    ``setting`` names the personalization's number of steps, such as ``adapt_steps``; None: the method has no such part. Where the
    number is not set it is epochs, ``adapt_epochs``, by default one; an epoch's last batch may be smaller.
    """
    if setting is None:
        return 0
    how = config["personalization"]
    if how.get(setting) is not None:
        return int(how[setting])
    epochs = how.get(setting.replace("steps", "epochs"))
    return (1 if epochs is None else int(epochs)) * -(-examples // config["training"]["batch_size"])

"""Write a bundle: the files in a new folder first, which then takes the place of the wanted one; so there is a whole bundle or none.

A folder that is there already stays the same folder, for it may be somebody's working directory or a mounted disk: the files are moved in.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pppml_core.errors import ConfigError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import Task
from pppml_core.learning.bundle import documents
from pppml_core.learning.bundle.documents import Origin
from pppml_core.learning.bundle.inference import WEIGHTS, configs
from pppml_core.learning.bundle.network import SCRIPT, describe
from pppml_core.learning.bundle.targets import check_targets


def write_bundle(task: Task, factory: ModelFactory, model: torch.nn.Module, origin: Origin, out: str | Path) -> Path:
    """Write the bundle of ``model`` into the folder ``out``, made where needed, and return it.

    The same model gives the same bytes with the same versions of torch and MONAI (but for TorchScript, where torch counts up the names of
    classes). Weights of another precision are stored as float32.

    Raises ConfigError: the folder is not empty or cannot be written; the task cannot tell MONAI how a file is read; the network can be
    told neither as a config nor as TorchScript; a config names something beside torch, MONAI and numpy.
    """
    folder = Path(out)
    # (a link to a folder stays one)
    folder = folder.resolve() if folder.is_symlink() else folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{what}; a bundle is written into a folder of its own", place=str(folder), hint="give another -o DIR")
    files = _files(task, factory, model.cpu().float().eval(), origin)
    try:
        there = folder.is_dir()
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder if there else folder.parent))
        try:
            for name, content in files.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).write_bytes(content)
            if there:
                _move_in(made, folder)
            else:
                made.chmod(0o777 & ~_umask())
                os.replace(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", place=str(folder), hint="give another -o DIR") from error
    return folder


def _move_in(made: Path, folder: Path) -> None:
    """Move what is in ``made`` into ``folder``: all of it or nothing."""
    parts = sorted(made.iterdir())
    try:
        for part in parts:
            os.rename(part, folder / part.name)
    except BaseException:  # Ctrl-C too, which may come right after a move
        for part in parts:
            if not part.exists():
                os.rename(folder / part.name, part)
        raise


def _files(task: Task, factory: ModelFactory, model: torch.nn.Module, origin: Origin) -> dict[str, bytes]:
    spec, card, readings = task.spec(), task.card(), tuple(task.readings())
    if not readings:
        raise ConfigError(
            f"the task {origin.task} cannot tell MONAI how it reads a file, so a bundle would need pppml",
            place="task",
            hint="write its `readings` (pppml_core.interfaces.task); `pppml predict` works without",
        )
    for reading in readings:
        check_targets(reading.steps, f"the reading {reading.name!r} of the task {origin.task}", "task")
    network = describe(factory, spec, model)
    scripted = network.script is not None
    meta = documents.metadata(spec, card, origin, readings, scripted)
    weights = io.BytesIO()
    torch.save({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, weights)
    files = {f"configs/{name}": _json(config) for name, config in configs(spec, network.sections, readings).items()}
    return {
        "LICENSE": documents.licence(card).encode(),
        "configs/metadata.json": _json(meta),
        **files,
        "docs/README.md": documents.readme(spec, card, origin, readings, scripted).encode(),
        "docs/data_card.json": _json(documents.data_card(card)),
        "docs/data_card.md": documents.data_card_text(card).encode(),
        WEIGHTS: weights.getvalue(),
        **({SCRIPT: network.script} if network.script is not None else {}),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found

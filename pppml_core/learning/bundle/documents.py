"""The texts of a bundle: ``metadata.json`` after MONAI's schema of 2024-07-25, README, data card, licence note.

They say what the run and the task's data card say. Whom the model belongs to is not among it, and is not made up.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from pppml_core import __version__
from pppml_core.interfaces.privacy import claim_words
from pppml_core.interfaces.task import DataCard, Reading, TaskSpec

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
VERSION = "0.1.0"
USE = "research; not for clinical use"
NOT_STATED = "not stated: to be filled in by whoever shares this bundle"
HOW = {
    "federated": "trained by federated learning",
    "pooled": "trained on the data of all sites at one place",
    "alone": "trained by one site alone",
}


@dataclass(frozen=True)
class Origin:
    """What the texts tell of the run.

    Args:
        run: its name.
        task: name of the task's component; so model, method (personalization) and aggregator.
        role: how the sites trained: together, on pooled data, or each alone.
        site: slug of the site that the model was asked for, None for the global one.
        own: whether these weights are that site's own, and not the shared ones.
        rounds: that were trained. selected: the round the weights are of.
        weights: sha256 of the exported weights.
        scores: metric -> value on test data: the site's own, or the mean over sites; only where the run has published them.
        privacy: ``privacy`` of result.json.
    """

    run: str
    task: str
    model: str
    method: str
    aggregator: str
    role: Literal["federated", "pooled", "alone"]
    site: str | None
    own: bool
    rounds: int
    selected: int
    weights: str
    scores: Mapping[str, float | None]
    privacy: Mapping[str, Any]


def metadata(spec: TaskSpec, card: DataCard, origin: Origin, readings: Sequence[Reading], scripted: bool) -> dict[str, Any]:
    """``configs/metadata.json``. ``scripted``: whether the network is loaded as TorchScript."""
    whole = spec.kind == "classification"
    about = {"classification": "one class for each image", "segmentation": "a class for each pixel or voxel"}[spec.kind]
    channels = {str(i): name for i, name in enumerate(spec.classes)}
    classes = "; ".join(f"{i}: {name}" for i, name in channels.items())
    loaded = "loaded as TorchScript" if scripted else "built from `network_def`"
    tensor = {"dtype": "float32", "is_patch_data": not whole}
    output = {"type": "probabilities", "format": "classes"} if whole else {"type": "image", "format": "segmentation"}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"exported by pppml {__version__} from the run {origin.run!r}, weights {origin.weights[:16]}"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": _packages(readings),
        "name": f"{origin.run}, {_whose(origin)}",
        "task": f"{card.title}: {spec.kind}, {about}",
        "description": f"A network {loaded}, {HOW[origin.role]}; {_whose(origin)}. {_trained(origin)}",
        "authors": NOT_STATED,
        "copyright": NOT_STATED,
        "data_source": card.how_to_get,
        "data_type": ", ".join(r.name for r in readings),
        "image_classes": f"{spec.channels} channel(s); {readings[0].about}",
        "label_classes": classes,
        "pred_classes": f"{len(spec.classes)} channels of probabilities after softmax; {classes}",
        "eval_metrics": _scores(origin),
        "intended_use": USE,
        "references": list(card.cites),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "n/a",
                    "num_channels": spec.channels,
                    "spatial_shape": list(spec.size),
                    "value_range": list(readings[0].value_range or ()),
                    "channel_def": {str(i): f"channel {i}" for i in range(spec.channels)},
                    **tensor,
                }
            },
            "outputs": {
                "pred": {
                    **output,
                    "num_channels": len(spec.classes),
                    "spatial_shape": [] if whole else list(spec.size),
                    "value_range": [],
                    "channel_def": channels,
                    **tensor,
                }
            },
        },
    }


def readme(spec: TaskSpec, card: DataCard, origin: Origin, readings: Sequence[Reading], scripted: bool) -> str:
    """``docs/README.md``."""
    template = Path(__file__).with_name("README.md.j2").read_text(encoding="utf-8")
    text: str = jinja2.Template(template, keep_trailing_newline=True, undefined=jinja2.StrictUndefined).render(
        spec=spec,
        card=card,
        origin=origin,
        readings=readings,
        scripted=scripted,
        use=USE,
        whose=_whose(origin),
        trained=_trained(origin),
        scores=_scores(origin),
        privacy=_privacy(origin),
    )
    return text


def data_card(card: DataCard) -> dict[str, Any]:
    """The task's data card as plain data. Of files only the names: where they lay is nobody's business."""
    return {**asdict(card), "files": [Path(file).name for file in card.files]}


def data_card_text(card: DataCard) -> str:
    """``docs/data_card.md``."""
    rows = [("Licence", card.licence), ("How to get them", card.how_to_get), ("Files", ", ".join(Path(f).name for f in card.files))]
    lists = [("References", card.cites), ("Cautions", card.cautions)]
    out = [f"# {card.title}", "", card.about, "", *(f"- {name}: {value}" for name, value in rows if value)]
    for name, values in lists:
        out += ["", f"## {name}", "", *(f"- {value}" for value in values)] if values else []
    return "\n".join(out) + "\n"


def licence(card: DataCard) -> str:
    """``LICENSE``: a note, as nobody has granted one."""
    return f"""No licence has been granted for these weights yet.

The run they come from states neither their authors nor their owner. Whoever shares this bundle writes here who they are and under which
terms, after looking at:

- the terms of the data the model was trained on: {card.licence}
- the agreements between the sites that trained it
- MONAI and PyTorch, which build the network, are under Apache-2.0 and BSD-3-Clause; the configs of this bundle were written by pppml
  (Apache-2.0), which claims no right in them
"""


def _whose(origin: Origin) -> str:
    if origin.role == "pooled":
        return "the model of all sites' pooled data" + (f", after the last step of {origin.method}" if origin.own else "")
    if origin.site is None:
        return "the global model"
    if not origin.own:
        return f"the global model, which is also that of site {origin.site}"
    return f"the model of site {origin.site}" if origin.role == "alone" else f"the personalized model of site {origin.site}"


def _trained(origin: Origin) -> str:
    many = "" if origin.rounds == 1 else "s"
    over = f" over {origin.aggregator}" if origin.role == "federated" else ""
    chosen = "" if origin.selected == origin.rounds else f"; the weights are of round {origin.selected}, chosen on validation data"
    return f"Task {origin.task}, model {origin.model}: {origin.rounds} round{many} of {origin.method}{over}{chosen}."


def _scores(origin: Origin) -> dict[str, float]:
    return {name: value for name, value in origin.scores.items() if value is not None and math.isfinite(value)}


def _privacy(origin: Origin) -> str:
    found = origin.privacy
    if not isinstance(found.get("epsilon"), int | float):
        said = "Trained without a differential privacy guarantee: such weights can reveal something of the training images."
    else:
        said = f"Trained with {found['mechanism']}: {claim_words(found)}."
        if origin.own and origin.role == "federated":
            text = "These weights are not covered by a guarantee of differential privacy: the site made them of its images without noise."
            said = f"{text} What it sent was covered: {said[0].lower()}{said[1:]}"
    own = " This model was fitted to one site's patients, and the run sent it nowhere: sharing it is that site's decision."
    return said + (own if _of_one_site(origin) else "")


def _of_one_site(origin: Origin) -> bool:
    return origin.own and origin.role != "pooled"


def _packages(readings: Sequence[Reading]) -> dict[str, str]:
    """What MONAI itself does not bring along: readers, and ignite and fire for `python -m monai.bundle run`."""
    names = sorted({"pytorch-ignite", "fire", *(p for r in readings for p in r.packages)})
    return {name: _version(name) for name in names}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:  # not needed to write a bundle
        return "0.4.11" if distribution == "pytorch-ignite" else "any"

"""How far gradient matching gets on real images, and when a failure of it says nothing.

    python examples/studies/attacks/idlg_rescue.py --data DIR --out runs/idlg

Three parts, each a table: `rescue` (64 x 64, two classes: does `idlg` redraw what `idlg-published` cannot?), `adaptive` (clip and noise:
what is knowing them worth?), `labels` (label accuracy of `dlg` and `idlg-published`). DIR holds the npz files named in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

# One torch thread: what seconds mean depends on it. Before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from pppml_core.evidence.images import psnr, to_unit
from pppml_core.interfaces.attack import AdversaryView, Attack, Budget, Defence, Images, Knowledge, Seen, Sight, Training, Vantage
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.forward import expected_update
from pppml_core.learning.stats import wilson
from pppml_idlg.config import DlgConfig, IdlgConfig, IdlgPublishedConfig, SigmoidLenetConfig
from pppml_idlg.hardened import Idlg
from pppml_idlg.lenet import SigmoidLenet
from pppml_idlg.published import Dlg, IdlgPublished

PUBLIC = 200
FILES = {
    "ct": "segmentation_multisource_covidct_128.npz",
    "cells": "bloodcells_chula_rbc8_28.npz",
    "xray": "ct_or_xray_classification_pneumoniamnist_v1_28.npz",
}


@dataclass(frozen=True)
class Pool:
    """Real images in [0, 1] in a fixed random order; the last ``PUBLIC`` are the adversary's, victims come from the front."""

    images: np.ndarray
    targets: np.ndarray
    classes: int

    @classmethod
    def read(cls, folder: Path, name: str) -> Pool:
        """``ct``: slices of 64 x 64 with or without a lesion; ``cells``: 28 x 28 x 3, eight classes; ``xray``: 28 x 28, two."""
        with np.load(folder / FILES[name]) as data:
            images = data["images"].astype(np.float32) / 255
            targets = (data["masks"] > 0).any(axis=(1, 2)) if name == "ct" else data["labels"]
        if name == "ct":
            images = images.reshape(len(images), 64, 2, 64, 2).mean(axis=(2, 4))
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        order = np.random.default_rng(0).permutation(len(images))
        return cls(np.ascontiguousarray(images[order]), targets[order].astype(np.int64), int(targets.max()) + 1)

    def public(self) -> Images:
        """Of the adversary."""
        return Images(self.images[-PUBLIC:], self.targets[-PUBLIC:])


def start(network: torch.nn.Module, seed: int, kind: str) -> dict[str, np.ndarray]:
    """Initial weights: ``uniform`` on [-0.5, 0.5], the paper's; ``torch``: torch's default, narrower by the root of the fan-in."""
    generator, named = torch.Generator().manual_seed(seed), dict(network.named_parameters())
    widths = {n: 0.5 if kind == "uniform" else named[n.replace("bias", "weight")][0].numel() ** -0.5 for n in named}
    return {n: ((2 * torch.rand(p.shape, generator=generator) - 1) * widths[n]).numpy() for n, p in named.items()}


def victim(pool: Pool, number: int, kind: str, defence: Defence, rate: float) -> tuple[AdversaryView, Knowledge]:
    """One image of the pool, one step on it at a fresh network, and what is seen of that."""
    image, target = pool.images[number : number + 1], pool.targets[number : number + 1]
    channels, side = image.shape[1], image.shape[2]
    classes = tuple(map(str, range(pool.classes)))
    spec = TaskSpec("classification", channels, (side, side), classes, "sigmoid-lenet", "accuracy", {})
    network = partial(SigmoidLenet(SigmoidLenetConfig()).build, spec)
    weights = start(network(), number, kind)
    ctx = Knowledge(
        site="a",
        spec=spec,
        network=network,
        loss=torch.nn.functional.cross_entropy,
        training=Training(rate),
        defence=defence,
        low=np.zeros((channels, 1, 1), np.float32),
        high=np.ones((channels, 1, 1), np.float32),
        public=pool.public(),
        seed=number,
    )
    model = ctx.model(Seen(1, weights, {}, ("a",), ()))
    made = expected_update(model, ctx.loss, torch.from_numpy(image), torch.from_numpy(target), ctx.training, defence)
    noise = np.random.default_rng(number)
    update = {n: (t.detach().numpy() + defence.noise * noise.standard_normal(t.shape)).astype(np.float32) for n, t in made.items()}
    return AdversaryView(Vantage("server", server=True), (Seen(1, weights, {}, ("a",), (Sight(("a",), update, 1.0),)),)), ctx


@dataclass(frozen=True)
class Row:
    """One answer: picture in decibel, whether the label was right, effort."""

    part: str
    case: str
    victim: int
    attack: str
    db: float
    label: bool
    evaluations: float
    seconds: float
    loss: float


def attacked(
    part: str, case: str, pool: Pool, number: int, name: str, attack: Attack, seen: tuple[AdversaryView, Knowledge], seconds: float
) -> Row:
    """Run and score."""
    view, ctx = seen
    found = attack.run(view, Budget(seconds), ctx)
    true = pool.images[number : number + 1].astype(np.float64)
    db = float(psnr(to_unit(found.guess["images"], ctx.low, ctx.high), true)[0])
    right, effort = int(found.guess["labels"][0]) == int(pool.targets[number]), found.effort
    row = Row(part, case, number, name, db, right, effort["evaluations"], effort["seconds"], effort["loss"])
    print(f"{case:22} {number:3} {name:16} {db:6.1f} dB  label {'right' if right else 'WRONG'}  {row.seconds:5.1f} s", flush=True)
    return row


def rescue(folder: Path, victims: int, seconds: float) -> list[Row]:
    """64 x 64, two classes, no defence."""
    pool, rows = Pool.read(folder, "ct"), []
    for kind in ("uniform", "torch"):
        for number in range(victims):
            view, ctx = victim(pool, number, kind, Defence(), 0.1)
            for name, attack in (("idlg-published", IdlgPublished(IdlgPublishedConfig())), ("idlg", Idlg(IdlgConfig(steps=100_000)))):
                rows.append(attacked("rescue", f"ct, {kind} weights", pool, number, name, attack, (view, ctx), seconds))
    return rows


def adaptive(folder: Path, victims: int, seconds: float) -> list[Row]:
    """28 x 28, clip 1, noise of 1e-3 of it on each coordinate: the same solver, with and without knowledge of both."""
    rows = []
    for data in ("cells", "xray"):
        pool = Pool.read(folder, data)
        for number in range(victims):
            view, ctx = victim(pool, number, "uniform", Defence("clip and noise", 1.0, "update", 1e-3), 1.0)
            for name, told in (("adaptive", True), ("blind", False)):
                attack = Idlg(IdlgConfig(steps=40, restarts=1))
                rows.append(attacked("adaptive", data, pool, number, name, attack, (view, replace(ctx, adaptive=told)), seconds))
    return rows


def labels(folder: Path, victims: int, seconds: float) -> list[Row]:
    """28 x 28, no defence: the label by joint search, and by the sign rule."""
    rows = []
    for data in ("cells", "xray"):
        pool = Pool.read(folder, data)
        for number in range(victims):
            view, ctx = victim(pool, number, "uniform", Defence(), 0.1)
            # The sign rule needs no search; pictures are not what is asked here.
            for name, attack in (("dlg", Dlg(DlgConfig())), ("idlg-published", IdlgPublished(IdlgPublishedConfig(steps=1)))):
                rows.append(attacked("labels", data, pool, number, name, attack, (view, ctx), seconds))
    return rows


def tables(rows: list[Row]) -> str:
    """What came out, in Markdown."""
    return "\n".join(table for table in (rescue_table(rows), adaptive_table(rows), labels_table(rows)) if table)


def _cases(rows: list[Row], part: str) -> dict[str, dict[str, dict[int, Row]]]:
    """Case -> attack -> victim -> row."""
    out: dict[str, dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row.part == part:
            out.setdefault(row.case, {}).setdefault(row.attack, {})[row.victim] = row
    return out


def _table(head: str, lines: list[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *lines, ""]) if lines else ""


def rescue_table(rows: list[Row]) -> str:
    """A picture counts from 20 dB on."""
    lines = []
    for case, of in _cases(rows, "rescue").items():
        failed = [v for v, row in of["idlg-published"].items() if row.db < 20]
        rescued = [v for v in failed if of["idlg"][v].db >= 20]
        medians = [f"{statistics.median(r.db for r in of[name].values()):.1f} dB" for name in ("idlg-published", "idlg")]
        lines.append(f"| {case} | {len(of['idlg'])} | {len(failed)} | {len(rescued)} | {' | '.join(medians)} |")
    head = "| 64 x 64, two classes | victims | `idlg-published` fails | of these `idlg` rescues | median `idlg-published` | median `idlg` |"
    return _table(head, lines)


def adaptive_table(rows: list[Row]) -> str:
    """Gains are of each victim, then their median."""
    lines = []
    for case, of in _cases(rows, "adaptive").items():
        pairs = [(of["adaptive"][v].db, of["blind"][v].db) for v in of["adaptive"]]
        gains = [told - blind for told, blind in pairs]
        medians = [f"{statistics.median(x):.1f} dB" for x in (*zip(*pairs, strict=True), gains)]
        lines.append(f"| {case} | {len(gains)} | {' | '.join(medians)} | {min(gains):.1f} dB |")
    return _table("| clip 1, noise 1e-3 | victims | median adaptive | median blind | median gain | least gain |", lines)


def labels_table(rows: list[Row]) -> str:
    """With 95 % intervals (Wilson)."""
    lines = []
    for case, of in _cases(rows, "labels").items():
        cells = []
        for name in ("dlg", "idlg-published"):
            found = wilson(sum(row.label for row in of[name].values()), len(of[name]))
            cells.append(f"{100 * found.estimate:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})")
        lines.append(f"| {case} | {len(of['dlg'])} | {' | '.join(cells)} |")
    return _table("| label right | victims | `dlg` | `idlg-published` |", lines)


def main() -> int:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/idlg"))
    parser.add_argument("--parts", default="rescue,adaptive,labels")
    parser.add_argument("--victims", type=int, default=10, help="of each case; labels: five times as many")
    parser.add_argument("--seconds", type=float, default=60.0, help="of one answer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = {"rescue": options.victims, "adaptive": options.victims, "labels": 5 * options.victims}
    rows: list[Row] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("rescue", rescue), ("adaptive", adaptive), ("labels", labels)):
        if name in options.parts.split(","):
            rows += part(options.data, counts[name], options.seconds)
    (options.out / "rows.json").write_text(json.dumps([asdict(r) for r in rows], indent=1), "utf-8")
    (options.out / "tables.md").write_text(tables(rows), "utf-8")
    print(tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

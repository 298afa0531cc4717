"""Run directories as a run leaves them, with figures from a seeded generator."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

SITES = {"a": "Hospital A", "b": "Hospital B <i>north</i>", "c": "Clinic C", "d": "Hospital D"}
LEVEL = {"local-only": 0.45, "fedavg": 0.55, "centralized": 0.68}
PRIVATE = {
    "mechanism": "dp-sgd", "epsilon": 6.0, "delta": 1e-05, "unit": "example", "adjacency": "add-remove", "placement": "local",
    "accountant": "pld", "adversary": "sees every message and the final model",
}  # fmt: skip
NO_CLAIM = {"mechanism": "none", "epsilon": None, "delta": None, "unit": "", "adjacency": "", "placement": "none", "accountant": ""}
PLAIN = {
    "sees_sum": ["server"], "sees_update": ["server"], "sees_weight": ["server"], "dropouts": 3, "coalition_curious": 0,
    "coalition_active": 0, "adversary": "none: the server is trusted with every update", "assumes": ["the server is trusted"],
    "arithmetic": "exact",
}  # fmt: skip
MASKED = {
    "sees_sum": ["server", "sites"], "sees_update": [], "sees_weight": [], "dropouts": 1, "coalition_curious": 2, "coalition_active": 1,
    "adversary": "honest-but-curious server and sites", "assumes": ["identities are pinned"], "arithmetic": "exact",
}  # fmt: skip
Make = Callable[..., Path]


def squares(count: int, size: int, generator: np.random.Generator) -> dict[str, Any]:
    """Grey images with one bright square each, its mask, and a prediction that is off by a pixel or two."""
    images = generator.random((count, 1, size, size)).astype(np.float32) * 0.3
    targets, predictions = (np.zeros((count, size, size), np.int64) for _ in range(2))
    for i in range(count - 1):  # the last one is empty
        y, x = generator.integers(2, size // 2, 2)
        images[i, 0, y : y + size // 3, x : x + size // 3] += 0.5
        targets[i, y : y + size // 3, x : x + size // 3] = 1
        predictions[i, y + 1 : y + size // 3, x + 1 : x + size // 3 + 2] = 1
    return {"images": images, "targets": targets, "predictions": predictions}


def write_run(
    folder: Path, *, method: str = "fedavg", seed: int = 1, rounds: int = 6, planned: int | None = None, finished: bool = True,
    sites: dict[str, str] | None = None, kind: str = "segmentation", private: bool = False,
    masked: bool = False, settings: dict[str, Any] | None = None, examples: bool = True, personalized: bool = True, patients: int = 0,
) -> Path:  # fmt: skip
    sites, folder = sites or SITES, Path(folder)
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, *map(ord, method)])
    metrics = ("dice", "hd95") if kind == "segmentation" else ("accuracy", "auc")
    slugs, promised, claim = list(sites), MASKED if masked else PLAIN, PRIVATE if private else NO_CLAIM
    config = {
        "run": {"name": f"demo-{method}", "rounds": planned or rounds, "seed": seed, "metrics": "per-site"},
        "task": {"use": "lung-lesions", "sites": len(slugs)}, "pool": method == "centralized", "model": {"use": "unet"},
        "training": {"epochs": 1, "batch_size": 16, "optimizer": {"use": "adam", "lr": 0.001}},
        "personalization": {"use": "fedavg" if method == "centralized" else method}, "privacy": {"use": claim["mechanism"]},
        "aggregator": {"use": "masked" if masked else "plain"},
        "reporters": [{"use": "console"}, {"use": "jsonl"}], "engine": {"use": "local", "workers": 0},
        **(settings or {}),
    }  # fmt: skip
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    plan = {
        "headline": "The server sees every update." if promised["sees_update"] else "The server sees only the sum.",
        "warnings": ["site c has 9 validation examples: its scores are rough"],
        "stages": [
            {"name": "fixed point", "takes": "482,129 real coordinates", "gives": "482,129 integers of 16 bits", "seen_by": ["the site"]},
            {"name": "plain", "takes": "integers", "gives": "their sum", "seen_by": ["server"]},
        ],
        "guarantees": promised,
        "bytes": {"up_per_site_round": 964_290, "down_per_site_round": 1_928_540, "by_stage": {}},
        "sites": [
            {"slug": s, "name": n, "train": 60 + 23 * i, "validation": 9 + i, "test": 20 + i} for i, (s, n) in enumerate(sites.items())
        ],
        "task": {
            "kind": kind, "classes": ["background", "lesion"], "primary_metric": metrics[0], "metrics": list(metrics), "channels": 1,
            "size": [64, 64],
        },
        "model": {"name": "unet", "parameters": 482_113},
        "privacy": claim,
        "plugins": [{"distribution": "pppml-lung-lesions", "version": "0.1.0"}],
        "versions": {"pppml-core": "0.1.0", "torch": "2.9.0", "python": "3.11.9"},
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    manifest = {
        "fields": [
            {
                "stage": "contribute", "name": "values", "dtype": "int16", "shape": [482_129], "max_bytes": 964_290,
                "mechanism": "in the clear", "says": "the site's update in fixed point",
            }
        ],
        "contribution": [
            {"name": "conv.weight", "role": "parameter", "shape": [16, 1, 3, 3], "range": 1.0, "bits": 16, "mechanism": "fixed point"}
        ],
        "evaluation": [{"name": metrics[0], "says": "Dice over the site's test slices"}],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))

    skill = {s: LEVEL.get(method, 0.6) + 0.1 * np.sin(3 * i) + generator.normal(0, 0.015) for i, s in enumerate(slugs)}

    def scores(slug: str, at: int, weights: str) -> dict[str, Any]:
        value = (skill[slug] + (0.06 if weights == "personalized" else 0)) * (1 - 0.8 * np.exp(-at / 2)) + generator.normal(0, 0.008)
        second = 0.5 + value / 2 if kind == "classification" else (None if slug == slugs[-1] else 30 * (1 - value))
        return {metrics[0]: round(float(value), 4), metrics[1]: second if second is None else round(float(second), 4)}

    shown = ("global", "personalized") if personalized else ("global",)
    events: list[dict[str, Any]] = [
        {"event": "run-started", "name": config["run"]["name"], "rounds": planned or rounds, "first_round": 1, "sites": slugs,
         "steps": {s: 4 + i for i, s in enumerate(slugs)}, "headline": plan["headline"]}
    ]  # fmt: skip
    rows = []
    for at in range(1, rounds + 1):
        for stage, up, down, took in (("open", 1_200, 7_700_000, 0.4), ("contribute", 3_860_000, 900, 9.5), ("evaluate", 4_000, 800, 2.1)):
            events.append({"event": "stage", "round": at, "stage": stage, "sent": down, "received": up, "seconds": took})
        for split in ("validation", "test"):
            for weights in shown:
                rows += [{"round": at, "site": s, "split": split, "weights": weights, **scores(s, at, weights)} for s in slugs]
        events.append({"event": "round-finished", "round": at, "seconds": 12.0, "survivors": slugs})
    events.append({"event": "warning", "text": "round 2: 14 of 482,129 coordinates of site b saturated"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if examples:
        arrays = squares(8, 24, generator)
        if kind == "classification":
            arrays |= {"targets": np.arange(8) % 2, "predictions": (np.arange(8) // 2) % 2}
        named = np.array([slugs[i % len(slugs)] for i in range(8)])
        np.savez_compressed(folder / "examples.npz", **arrays, sites=named, weights=np.array([shown[i % len(shown)] for i in range(8)]))
    if finished:
        last = [r for r in rows if r["round"] == rounds and r["split"] == "test"]
        found: dict[str, Any] = {}
        for w in shown:
            per_site = {r["site"]: {m: r[m] for m in metrics} for r in last if r["weights"] == w}
            known = {m: [v[m] for v in per_site.values() if v[m] is not None] for m in metrics}
            found[w] = {"mean": {m: sum(v) / len(v) for m, v in known.items()}, "sites": per_site}
        result = {
            "name": config["run"]["name"], "rounds": rounds, "seed": seed, "model_sha256": f"{seed:064x}", "survivors": {"1": slugs},
            "metrics": found,
            "bytes": {
                "up": 3_865_200 * rounds, "down": 7_701_700 * rounds,
                "by_stage": {"open": 7_701_200 * rounds, "contribute": 3_860_900 * rounds, "evaluate": 4_800 * rounds},
            },
            "seconds": {"total": 12.0 * rounds, "by_stage": {"training": 9.2 * rounds, "evaluation": 2.0 * rounds}},
            "privacy": claim, "guarantees": promised, "versions": plan["versions"],
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
        events.append({"event": "run-finished", "result": result})
        if patients:
            write_patients(folder, patients)
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return folder


def write_patients(folder: Path, count: int) -> None:
    """Scores of single patients in the sites' folders, and the result as their means."""
    result = json.loads((folder / "result.json").read_text())
    metric = "dice" if "dice" in result["metrics"]["global"]["mean"] else "accuracy"
    sites: dict[str, dict[str, Any]] = {}
    for weights, part in result["metrics"].items():
        for site, values in part["sites"].items():
            # Patients are hard or easy with every method; the methods differ by less.
            hard, own = (np.random.default_rng([*map(ord, site), *map(ord, more)]) for more in ("", folder.name + weights))
            counts = 1 + hard.integers(0, 6, count)
            found = np.clip(values[metric] + hard.normal(0, 0.1, count) + own.normal(0, 0.02, count), 0, 1)
            sites.setdefault(site, {})[weights] = {
                "groups": [f"PATIENT-{site}-{i}" for i in range(count)], "values": found.tolist(), "counts": counts.tolist(),
            }  # fmt: skip
            values[metric] = float(np.average(found, weights=counts if metric == "accuracy" else None))
        part["mean"][metric] = float(np.mean([v[metric] for v in part["sites"].values()]))
    (folder / "result.json").write_text(json.dumps(result))
    for site, tested in sites.items():
        (folder / "sites" / site).mkdir(parents=True)
        (folder / "sites" / site / "group-scores.json").write_text(json.dumps({"metric": metric, "sites": {site: {"test": tested}}}))


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """``make_run(name, **settings)`` writes a run directory and returns it."""

    def make(name: str = "run", **settings: Any) -> Path:
        return write_run(tmp_path / name, **settings)

    return make

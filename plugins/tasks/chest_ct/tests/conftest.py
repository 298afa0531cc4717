"""A small folder in RAD-ChestCT's format: npz volumes, metadata, labels, lung boxes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pppml_chest_ct.config import C3
from pppml_core.learning.phantom import draw_patient
from pppml_core.learning.scanner import Scanner
from pppml_core.randomness import Seeds


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def volume(number: int, sick: bool = True) -> np.ndarray:
    """int16 HU, 40 slices from head to feet, 48 x 48."""
    draw = Seeds(11).generator("volume", number)
    body = draw_patient(draw, lesions=6 if sick else 0, lesion_scale=1.3)
    scanner = Scanner("test", slice_mm=6.0, noise_hu=10, sharpness=0, fov_mm=400)
    hu, _ = scanner.acquire(body, -5 + 6.0 * np.arange(40), 48, draw)
    return np.clip(np.rint(hu), -1000, 1000).astype(np.int16)


COLUMNS = [
    "NoteAcc_DEID",
    "MRN_DEID",
    "Set_Assigned",
    "Subset_Assigned",
    "Manufacturer",
    "ManufacturerModelName",
    "VolumeAcc_DEID",
    "final_spacing",
]


def write(root: Path, per_site: int = 8, patients: Callable[[int], str] = lambda i: f"mrn{i:05d}") -> list[dict[str, Any]]:
    """``per_site`` scans of the first scanner of each client of split c3; every second one has consolidation. Returns the metadata rows."""
    root.mkdir(parents=True, exist_ok=True)
    rows, labels = [], {"train": [], "valid": [], "test": []}
    number = 0
    for models in C3.values():
        for i in range(per_site):
            part = ("train", "train", "train", "train", "train", "valid", "test", "test")[i % 8]
            name = f"{ {'train': 'trn', 'valid': 'val', 'test': 'tst'}[part] }{number:05d}"
            np.savez_compressed(root / f"{name}.npz", ct=volume(number, bool(i % 2)))
            model = models[i % 2]
            rows.append(
                dict(
                    zip(COLUMNS, [name, patients(number), f"img{part}", f"img{part}", "SIEMENS", model, f"{name}.npz", "0.8"], strict=True)
                )
            )
            labels[part].append({"NoteAcc_DEID": name, "consolidation*right_lower": i % 2, "groundglass*lung": 0, "nodule*left_upper": 1})
            number += 1
    table(root / "CT_Scan_Metadata_Complete_35747.csv", rows)
    for part, some in labels.items():
        table(root / f"img{part}_Abnormality_and_Location_Labels.csv", some)
    return rows


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV file."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scans of 24 patients at three clients."""
    root = tmp_path_factory.mktemp("rad")
    write(root)
    return root


@pytest.fixture(scope="session")
def make() -> Any:
    """The writers above (test modules do not import each other)."""
    from types import SimpleNamespace

    return SimpleNamespace(volume=volume, write=write, table=table)

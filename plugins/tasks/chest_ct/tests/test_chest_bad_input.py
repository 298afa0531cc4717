"""Bad input: every fault is refused with its place, its reason and a hint, and exit code 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pppml_chest_ct.config import ChestCTConfig
from pppml_chest_ct.task import ChestCT
from pppml_core.errors import DataError

CONFIGS = [
    ({"source": "rad-chestct"}, "needs a path"),
    ({"path": "x"}, "add `source: rad-chestct`"),
    ({"source": "radchest"}, "'phantom' or 'rad-chestct'"),
    ({"size": 8}, "greater than or equal to 16"),
    ({"window": (-600, -1)}, "greater than 0"),
    ({"thickness": (2.0, 5.0)}, "2 values for 3 sites"),
    ({"thickness": (2.0, 5.0, 0.0)}, "greater than 0"),
    ({"per_class": 3}, "read by source rad-chestct only"),
    ({"source": "rad-chestct", "path": "x", "patients": 5}, "read by source phantom only"),
    ({"source": "rad-chestct", "path": "x", "groups": {"a": ()}}, "at least one scanner"),
    ({"source": "rad-chestct", "path": "x", "abnormalities": ()}, "at least 1 item"),
    ({"source": "rad-chestct", "path": "x", "labels": {"file": "y"}}, "column"),
]


@pytest.mark.parametrize(("settings", "said"), CONFIGS, ids=lambda v: str(v)[:40])
def test_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ChestCTConfig(**settings)


Break = Callable[[Path], Any]
METADATA, LABELS = "CT_Scan_Metadata_Complete_35747.csv", "imgtrain_Abnormality_and_Location_Labels.csv"


def edit(name: str, old: str, new: str, count: int = -1) -> Break:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new, count))


def truncate(root: Path) -> None:
    file = root / "trn00000.npz"
    file.write_bytes(file.read_bytes()[:3000])


def damage(root: Path) -> None:
    file = root / "trn00000.npz"
    data = bytearray(file.read_bytes())
    data[2000:2400] = bytes(400)
    file.write_bytes(bytes(data))


def store(**arrays: Any) -> Break:
    return lambda root: np.savez(root / "trn00000.npz", **arrays)


FAULTS: list[tuple[str, Break, dict[str, Any], str, str, str]] = [
    ("no metadata", lambda r: (r / METADATA).unlink(), {}, "", "no metadata file", "set `metadata`"),
    ("metadata elsewhere", lambda r: None, {"metadata": "nowhere.csv"}, "nowhere.csv", "no such file", "check the path"),
    (
        "metadata column",
        edit(METADATA, "ManufacturerModelName", "ManufacturerModel"),
        {},
        METADATA,
        "no column 'ManufacturerModelName'",
        "'ManufacturerModel' meant",
    ),
    ("scan twice", edit(METADATA, "trn00001", "trn00000"), {}, METADATA + ":3", "two rows that differ", "keep one"),
    ("no labels", lambda r: [p.unlink() for p in r.glob("img*.csv")], {}, "", "no label file", "set `labels`"),
    (
        "unknown finding",
        lambda r: None,
        {"abnormalities": ["consolidatoin"]},
        "Abnormality_and_Location_Labels.csv",
        "no finding 'consolidatoin'",
        "'consolidation' meant",
    ),
    ("label no number", edit(LABELS, "trn00000,0", "trn00000,yes"), {}, LABELS + ":2", "'yes', not a number", "correct"),
    ("label file missing", lambda r: None, {"labels": {"file": "mine.csv", "column": "x"}}, "mine.csv", "no such file", "check the path"),
    (
        "metadata not text",
        lambda r: (r / METADATA).write_bytes(b"\xff\xfe\x00\x01" * 50),
        {},
        METADATA,
        "cannot be read as CSV",
        "download",
    ),
    ("no volumes", lambda r: [p.unlink() for p in r.glob("*.npz")], {}, "", "no npz volume", "trn00001.npz"),
    (
        "empty site",
        lambda r: None,
        {"groups": {"a": ["Aquilion ONE"], "b": ["LightSpeed VCT"]}, "thickness": "as-is"},
        METADATA,
        "site 'a' has no",
        "scanner models in the folder",
    ),
    ("truncated volume", truncate, {}, "trn00000.npz", "truncated", "download"),
    ("damaged volume", damage, {}, "trn00000.npz", "damaged", "download"),
    ("no array ct", store(cts=np.zeros((4, 4, 4), np.int16)), {}, "trn00000.npz", "no array `ct`", "`cts` meant"),
    ("wrong dimensions", store(ct=np.zeros((4, 4), np.int16)), {}, "trn00000.npz", "shape (4, 4)", "3 dimensions"),
    ("floats", store(ct=np.zeros((4, 4, 4), np.float32)), {}, "trn00000.npz", "float32", "int16"),
    ("no lungs", store(ct=np.full((40, 40, 40), 40, np.int16)), {}, "trn00000.npz", "no lungs found", "crop: none"),
    (
        "patient in two official parts",
        edit(METADATA, "mrn00006", "mrn00000"),
        {"split": "official"},
        "",
        "'mrn00000' lies in both train and test",
        "one part",
    ),
]


def read_everything(task: ChestCT) -> None:
    for site in task.sites():
        data = task.load(site.slug)
        for part in (data.train, data.validation, data.test):
            for index in range(len(part)):
                part.example(index)


@pytest.mark.parametrize(("do", "settings", "place", "reason", "hint"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults(dataset: Path, tmp_path: Path, do: Break, settings: dict[str, Any], place: str, reason: str, hint: str) -> None:
    root = tmp_path / "rad"
    shutil.copytree(dataset, root)
    do(root)
    task = ChestCT(ChestCTConfig(source="rad-chestct", path=str(root), size=16, **settings))
    with pytest.raises(DataError) as caught:
        read_everything(task)
    error = caught.value
    assert error.exit_code == 2
    assert place in str(error.place)
    assert reason in error.message
    assert hint in str(error.hint)


def test_a_volume_that_no_table_names_is_left_out_and_said(dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "rad"
    shutil.copytree(dataset, root)
    (root / "trn00000.npz").rename(root / "trn99999.npz")
    task = ChestCT(ChestCTConfig(source="rad-chestct", path=str(root), size=16))
    assert "23 chest CT volumes" in task.card().about
    assert any("1 volumes not in the metadata" in caution for caution in task.card().cautions)


def test_one_patient_everywhere_cannot_be_split(dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "rad"
    shutil.copytree(dataset, root)
    text = (root / METADATA).read_text().splitlines()
    head, rows = text[0], [line.split(",") for line in text[1:]]
    (root / METADATA).write_text("\n".join([head, *(",".join([r[0], "mrn1", *r[2:]]) for r in rows)]))
    task = ChestCT(ChestCTConfig(source="rad-chestct", path=str(root)))
    with pytest.raises(DataError, match="nothing can be held out"):
        task.sites()
    assert "nothing can be held out" in task.misfits()[0]


def test_missing_folder_names_the_nearest(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "radchest")
    with pytest.raises(DataError, match=r"no such folder.*'radchest'"):
        ChestCT(ChestCTConfig(source="rad-chestct", path=str(tmp_path / "radchset"))).sites()


def test_unknown_site_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"site_11.*site_1"):
        ChestCT(ChestCTConfig()).load("site_11")


def test_prediction_of_what_is_no_volume(tmp_path: Path, dataset: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    task = ChestCT(ChestCTConfig(size=16))
    with pytest.raises(DataError, match="is no volume"):
        task.prepare(str(tmp_path / "a.png"))
    np.savez(tmp_path / "b.npz", image=np.zeros((4, 4, 4)))
    with pytest.raises(DataError, match="no array `ct`"):
        task.prepare(str(tmp_path / "b.npz"))

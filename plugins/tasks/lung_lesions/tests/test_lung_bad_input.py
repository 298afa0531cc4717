"""Bad input: every fault is refused with its place, its reason and a hint, and exit code 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from pppml_core.errors import DataError
from pppml_core.interfaces.task import Task
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.task import LungLesions

CONFIGS = [
    ({"source": "ct"}, "needs a path"),
    ({"source": "npz"}, "an npz file"),
    ({"path": "x.npz"}, "add `source: npz`"),
    ({"source": "pictures"}, "'phantom', 'npz' or 'ct'"),
    ({"sites": 1}, "greater than or equal to 2"),
    ({"sites": 21}, "less than or equal to 20"),
    ({"size": 16}, "greater than or equal to 32"),
    ({"dims": 3}, "Input should be 2"),
    ({"axis": "coronal"}, "read by source ct only"),
    ({"source": "ct", "path": "x", "patients": 3}, "read by source phantom only"),
    ({"source": "npz", "path": "x", "window": (-600, 1600)}, "windowed already"),
    ({"source": "ct", "path": "x", "window": (-600, 0)}, "greater than 0"),
    ({"source": "ct", "path": "x", "slices": 2}, "1 or 3"),
    ({"sitez": 5}, "Extra inputs"),
]


@pytest.mark.parametrize(("settings", "said"), CONFIGS, ids=lambda v: str(v)[:40])
def test_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LungLesionsConfig(**settings)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, files: SimpleNamespace) -> Path:
    root = tmp_path_factory.mktemp("good")
    files.write_sites(root, {"a": 3}, slices=4)
    files.write_dicom(root / "a" / "p0" / "dicom", files.patient_volume(0, 4)[0])
    (root / "a" / "p0" / "ct.nii.gz").unlink()
    return root


Break = Callable[[Path, SimpleNamespace], None]


def _truncate(name: str) -> Break:
    def do(root: Path, files: SimpleNamespace) -> None:
        file = next(root.glob(name))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return do


def _replace(name: str, change: Callable[[np.ndarray], np.ndarray], shift: float = 0.0) -> Break:
    def do(root: Path, files: SimpleNamespace) -> None:
        image = nib.load(root / name)
        affine = image.affine.copy()
        affine[2, 3] += shift
        array = change(np.asarray(image.dataobj))
        image.uncache()
        nib.save(nib.Nifti1Image(array, affine), root / name)

    return do


def _nan(array: np.ndarray) -> np.ndarray:
    out = array.astype(np.float32)
    out[0, 0, 0] = np.nan
    return out


def _two_series(root: Path, files: SimpleNamespace) -> None:
    files.write_dicom(root / "a/p0/dicom", files.patient_volume(1, 4)[0], uid="1.2.826.0.1.3680043.8.498.2", names="other{:03d}.dcm")


def _gap(root: Path, files: SimpleNamespace) -> None:
    import pydicom

    next(p for p in (root / "a/p0/dicom").iterdir() if pydicom.dcmread(p).InstanceNumber == 2).unlink()


def _text(name: str, text: str) -> Break:
    return lambda root, files: (root / name).write_text(text) and None


def _move(a: str, b: str) -> Break:
    return lambda root, files: (root / a).rename(root / b) and None


FOLDERS: list[tuple[str, Break, str, str, str]] = [
    ("no mask", lambda r, f: (r / "a/p1/mask.nii.gz").unlink(), "a/p1", "no mask", "add mask.nii.gz"),
    ("no ct", lambda r, f: (r / "a/p1/ct.nii.gz").unlink(), "a/p1", "no CT", "ct.nii.gz"),
    ("misspelt ct", _move("a/p1/ct.nii.gz", "a/p1/cts.nii.gz"), "a/p1", "no CT", "rename 'cts.nii.gz'"),
    ("truncated nifti", _truncate("a/p1/ct.nii.gz"), "ct.nii.gz", "not a readable NIfTI", "viewer"),
    ("truncated mask", _truncate("a/p2/mask.nii.gz"), "mask.nii.gz", "not a readable NIfTI", "viewer"),
    ("truncated dicom", _truncate("a/p0/dicom/slice002.dcm"), "dicom", "DICOM", "export"),
    ("text as dicom", _text("a/p0/dicom/slice001.dcm", "hello"), "slice001.dcm", "not a readable DICOM", "copy"),
    ("missing dicom slice", _gap, "dicom", "gaps between slices", "whole series"),
    ("two dicom series", _two_series, "dicom", "2 DICOM series", "keep one"),
    ("empty dicom folder", lambda r, f: [p.unlink() for p in (r / "a/p0/dicom").iterdir()], "dicom", "0 DICOM slices", "all slices"),
    ("mask of another shape", _replace("a/p1/mask.nii.gz", lambda a: a[:-1]), "mask.nii.gz", "55x56x4 voxels, the CT 56x56x4", "grid"),
    ("mask elsewhere", _replace("a/p1/mask.nii.gz", lambda a: a, 5.0), "mask.nii.gz", "lies elsewhere", "affine"),
    ("soft mask", _replace("a/p1/mask.nii.gz", lambda a: (a * 0.4 + 0.2).astype(np.float32)), "mask.nii.gz", "no labels", "threshold"),
    ("nan", _replace("a/p1/ct.nii.gz", _nan), "ct.nii.gz", "NaN", "replace"),
    (
        "windowed ct",
        _replace("a/p1/ct.nii.gz", lambda a: np.clip((a + 1400) / 1600, 0, 1).astype(np.float32)),
        "ct.nii.gz",
        "no HU",
        "air -1000",
    ),
    ("one slice", _replace("a/p1/ct.nii.gz", lambda a: a[:, :, 0]), "ct.nii.gz", "not a volume", "3-D"),
    ("too few patients", lambda r, f: shutil.rmtree(r / "a/p1"), "", "has 2 patients", "at least 3|add patients"),
    ("site without patients", lambda r, f: (r / "b").mkdir(), "b", "has no patient", "add patient/"),
    (
        "splits: patient twice",
        _text("splits.csv", "patient,split\np0,train\np1,val\np2,test\np0,test\n"),
        "splits.csv:5",
        "both train and test",
        "one row",
    ),
    ("splits: unknown part", _text("splits.csv", "patient,split\np0,trian\n"), "splits.csv:2", "trian", "train, validation, test"),
    ("splits: unknown patient", _text("splits.csv", "patient,split\np00,train\n"), "splits.csv:2", "no folder", "'p0'"),
    ("splits: unlisted patient", _text("splits.csv", "patient,split\np0,train\np1,test\n"), "splits.csv", "a/p2", "list every"),
    (
        "splits: no test",
        _text("splits.csv", "patient,split\np0,train\np1,train\np2,train\n"),
        "splits.csv",
        "no test patient",
        "at least one",
    ),
    ("splits: columns", _text("splits.csv", "id,part\np0,train\n"), "splits.csv", "columns id, part", "patient,split"),
]


@pytest.mark.parametrize(("do", "place", "reason", "hint"), [row[1:] for row in FOLDERS], ids=[row[0] for row in FOLDERS])
def test_folders(good: Path, tmp_path: Path, files: SimpleNamespace, do: Break, place: str, reason: str, hint: str) -> None:
    root = tmp_path / "copy"
    shutil.copytree(good, root)
    do(root, files)
    with pytest.raises(DataError) as caught:
        LungLesions(LungLesionsConfig(source="ct", path=str(root), spacing=6.0, size=64)).load("a")
    error = caught.value
    assert error.exit_code == 2
    assert str(error.place).startswith(str(root))
    assert place in str(error.place)
    assert reason in error.message
    assert any(word in str(error.hint) for word in hint.split("|"))


def test_all_faults_of_a_folder_are_listed_at_once(good: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(good, root)
    (root / "a/p1/mask.nii.gz").unlink()
    (root / "a/p2/ct.nii.gz").unlink()
    (root / "b").mkdir()
    said = LungLesions(LungLesionsConfig(source="ct", path=str(root))).misfits()
    assert len(said) == 3
    assert sum("no mask" in s for s in said) == sum("no CT" in s for s in said) == sum("no patient" in s for s in said) == 1


def test_lesion_outside_the_crop_is_refused_with_a_size_that_does(good: Path) -> None:
    settings = {"source": "ct", "path": str(good), "spacing": 3.0}
    with pytest.raises(DataError, match="would cut off lesion") as caught:
        LungLesions(LungLesionsConfig(**settings, size=32)).load("a")
    size = int(str(caught.value.hint).split("set size to ")[1].split()[0])
    LungLesions(LungLesionsConfig(**settings, size=size + 32)).load("a")


def _task(path: Path, source: str) -> Task:
    return LungLesions(LungLesionsConfig(source=source, path=str(path)))  # type: ignore[arg-type]


def test_missing_paths_name_the_nearest(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "scans")
    with pytest.raises(DataError, match=r"no such folder.*'scans'"):
        _task(tmp_path / "scan", "ct").load("a")
    assert "no such folder" in _task(tmp_path / "scan", "ct").misfits()[0]
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="a file, not a folder"):
        _task(tmp_path / "file", "ct").sites()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no site"):
        _task(tmp_path / "empty", "ct").sites()


def _npz(path: Path, **arrays: Any) -> Path:
    full = {
        "images": np.zeros((12, 32, 32), np.uint8),
        "masks": np.zeros((12, 32, 32), np.uint8),
        "source": np.zeros(12, np.uint8),
        "split": np.array([0] * 9 + [2] * 3, np.uint8),
        "patient": np.array([f"p{i}" for i in range(12)]),
    }
    np.savez(path, **{k: v for k, v in {**full, **arrays}.items() if v is not None})
    return path


ARCHIVES = [
    ("no masks", {"masks": None}, "masks"),
    ("masks that do not fit", {"masks": np.zeros((12, 16, 32), np.uint8)}, "do not fit"),
    ("one patient in two splits", {"patient": np.array(["p0"] * 12)}, "both train and test"),
    ("pickled patients", {"patient": np.array([None] * 12, object)}, "Python objects"),
    ("infinite pixels", {"images": np.full((12, 32, 32), np.inf, np.float32)}, "NaN or infinite"),
    ("mask value without a name", {"masks": np.full((12, 32, 32), 7, np.uint8), "mask_names": np.array(["a", "b"])}, "value 7"),
    ("source without images", {"source_names": np.array(["one", "two"])}, "'two' has no example"),
]


@pytest.mark.parametrize(("arrays", "reason"), [row[1:] for row in ARCHIVES], ids=[row[0] for row in ARCHIVES])
def test_archives(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    path = _npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=reason) as caught:
        _task(path, "npz").load("source_0")
    assert str(path) in str(caught.value.place)
    assert caught.value.hint


def test_truncated_archive(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="truncated") as caught:
        _task(path, "npz").load("all")
    assert caught.value.hint
    assert "truncated" in _task(path, "npz").misfits()[0]


def test_unknown_site_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"scanner_11.*scanner_1"):
        LungLesions(LungLesionsConfig()).load("scanner_11")

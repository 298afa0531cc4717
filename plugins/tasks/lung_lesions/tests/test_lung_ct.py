"""Source ct: NIfTI and DICOM volumes give the slices that were written, whatever their orientation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pppml_core.interfaces.task import SPLITS
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.ct import as_image
from pppml_lung_lesions.folders import thinned
from pppml_lung_lesions.task import LungLesions
from pppml_lung_lesions.volumes import prepare, read_pair, turned


def config(root: Path, **settings: object) -> LungLesionsConfig:
    return LungLesionsConfig(**{"source": "ct", "path": str(root), "spacing": 6.0, "size": 64, **settings})  # type: ignore[arg-type]


def test_sites_patients_parts_and_slices(files: SimpleNamespace, tmp_path: Path) -> None:
    files.write_sites(tmp_path, {"Hospital A": 4, "clinic b": 3}, slices=6)
    task = LungLesions(config(tmp_path, keep_empty=0))
    assert [(s.slug, s.name) for s in task.sites()] == [("hospital_a", "Hospital A"), ("clinic_b", "clinic b")]
    assert task.misfits() == []
    assert task.spec().spacing_mm == (6.0, 6.0)
    for site, patients in (("hospital_a", 4), ("clinic_b", 3)):
        data = task.load(site)
        groups = [set(data.part(split).groups.tolist()) for split in SPLITS]
        assert sum(map(len, groups)) <= patients
        assert len(set.union(*groups)) == sum(map(len, groups))
        assert data.train.labels().all()  # keep_empty: 0
        assert len(data.test) == 8  # all slices: 6 of 8 mm are 8 of 6 mm
        image, target = data.test.example(0)
        assert image.shape == (1, 64, 64)
        assert image.dtype == np.float32
        assert target.shape == (64, 64)
        assert target.dtype == np.int64
        assert np.abs(image).max() <= 1


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "IRA"])
def test_axial_slices_are_as_written_in_any_storage_order(files: SimpleNamespace, tmp_path: Path, axes: str) -> None:
    hu, mask = files.patient_volume(0)
    files.write_nifti(tmp_path / "ct.nii.gz", hu, axes=axes)
    files.write_nifti(tmp_path / "mask.nii.gz", mask, axes=axes)
    out = turned(read_pair(tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"), "axial", (6.0, 6.0, 8.0))
    assert np.allclose(np.asarray(out["ct"])[0], hu.transpose(1, 0, 2), atol=0.5)
    assert np.array_equal(np.asarray(out["mask"])[0], mask.transpose(1, 0, 2))


def test_coronal_and_sagittal_have_the_head_on_top(files: SimpleNamespace, tmp_path: Path) -> None:
    hu, mask = files.patient_volume(0)
    files.write_nifti(tmp_path / "ct.nii", hu)
    files.write_nifti(tmp_path / "mask.nii", mask)
    pair = read_pair(tmp_path / "ct.nii", tmp_path / "mask.nii")
    coronal = np.asarray(turned(pair, "coronal", (0, 0, 0))["ct"])[0]
    sagittal = np.asarray(turned(pair, "sagittal", (0, 0, 0))["ct"])[0]
    assert np.allclose(coronal, hu.transpose(2, 0, 1)[::-1])  # rows down from the head, columns to the patient's left, slices to the back
    assert np.allclose(sagittal, hu.transpose(2, 1, 0)[::-1])  # rows down from the head, columns to the back, slices to the left


@pytest.mark.parametrize("names", ["slice{:03d}.dcm", "IM{:04d}"])
def test_a_dicom_series_equals_the_nifti_of_the_same_volume(files: SimpleNamespace, tmp_path: Path, names: str) -> None:
    hu, mask = files.patient_volume(1)
    files.write_dicom(tmp_path / "dicom", hu, names=names)
    # The same grid as the series: its first voxel lies at the origin.
    files.write_nifti(tmp_path / "ct.nii.gz", hu)
    files.write_nifti(tmp_path / "mask.nii.gz", mask)
    settings = {"spacing": 6.0, "axis": "axial", "size": 64, "fit": "crop"}
    nifti = prepare(tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz", **settings)
    dicom = prepare(tmp_path / "dicom", tmp_path / "mask.nii.gz", **settings)
    assert np.array_equal(nifti[0], dicom[0])
    assert np.array_equal(nifti[1], dicom[1])
    assert nifti[1].any()


def test_resampling_keeps_volume_and_position(files: SimpleNamespace, tmp_path: Path) -> None:
    hu, mask = files.patient_volume(2)
    files.write_nifti(tmp_path / "ct.nii.gz", hu)
    files.write_nifti(tmp_path / "mask.nii.gz", mask)
    mm = float(np.prod(files.spacing)) * mask.sum()
    for spacing, size in ((3.0, 128), (4.0, 96)):
        _, out = prepare(tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz", spacing=spacing, axis="axial", size=size, fit="crop")
        assert out.sum() * spacing**3 == pytest.approx(mm, rel=0.1)


def test_two_and_a_half_dimensions_are_neighbours(tmp_path: Path) -> None:
    volume = (np.arange(5)[:, None, None] * 100 * np.ones((5, 32, 32)) - 900).astype(np.int16)
    image = as_image(volume, 0, config(tmp_path, slices=3))
    assert image.shape == (3, 32, 32)
    assert np.allclose(image[:, 0, 0], (np.array([-900, -900, -800]) + 600) / 800)
    image = as_image(volume, 4, config(tmp_path, slices=3))
    assert np.allclose(image[:, 0, 0], np.clip((np.array([-600, -500, -500]) + 600) / 800, -1, 1))
    assert as_image(volume, 2, config(tmp_path, window=(0.0, 400.0)))[0, 0, 0] == -1


def test_keep_empty_thins_training_only() -> None:
    lesion = np.array([0, 1, 0, 0, 1, 0, 0, 0], bool)
    assert thinned(lesion, 0).tolist() == [1, 4]
    assert thinned(lesion, 1).tolist() == list(range(8))
    assert thinned(lesion, 3).tolist() == [0, 1, 4, 5]


def test_splits_csv_and_loss_of_no_patient(files: SimpleNamespace, tmp_path: Path) -> None:
    files.write_sites(tmp_path, {"a": 4}, slices=4)
    (tmp_path / "splits.csv").write_text("patient,split\np0,train\np1,train\np2,test\np3,test\n")
    data = LungLesions(config(tmp_path)).load("a")
    assert set(data.test.groups) == {"a/p2", "a/p3"}
    assert len(set(data.validation.groups)) == 1  # held out of the training patients
    assert set(data.validation.groups) <= {"a/p0", "a/p1"}


def test_resize_fits_whole_slices_and_says_pixels(files: SimpleNamespace, tmp_path: Path) -> None:
    files.write_sites(tmp_path, {"a": 3}, slices=4)
    task = LungLesions(config(tmp_path, fit="resize", size=32, axis="coronal"))
    assert task.spec().spacing_mm is None
    assert task.load("a").test.example(0)[0].shape == (1, 32, 32)


def test_prediction_reads_a_volume_as_training_did_and_knows_the_way_back(files: SimpleNamespace, tmp_path: Path) -> None:
    files.write_sites(tmp_path / "data", {"a": 3})
    for settings in ({}, {"axis": "sagittal"}, {"slices": 3}):
        task = LungLesions(config(tmp_path / "data", **settings))
        ct = tmp_path / "data" / "a" / "p0" / "ct.nii.gz"
        ((image, info),) = task.prepare(str(ct))
        hu, _ = prepare(ct, ct.parent / "mask.nii.gz", spacing=6.0, axis=str(settings.get("axis", "axial")), size=64, fit="crop")
        assert image.shape[0] == task.spec().channels
        at = image.shape[-1] // 2
        trained = as_image(hu, at, task.config)
        rows, columns = image.shape[1:3]
        top, left = (64 - rows) // 2, (64 - columns) // 2
        assert np.allclose(trained[:, top : top + rows, left : left + columns], image[..., at], atol=2e-3)
        assert info["original_shape"] == (56, 56, 16)
        assert np.asarray(info["affine"]).shape == (4, 4)


def test_prediction_of_pictures_and_volumes_with_a_phantom_model(files: SimpleNamespace, tmp_path: Path) -> None:
    from PIL import Image

    task = LungLesions(LungLesionsConfig())
    Image.fromarray(np.full((40, 50), 255, np.uint8)).save(tmp_path / "a.png")
    ((image, _),) = task.prepare(str(tmp_path / "a.png"))
    assert image.shape == (1, 40, 50)
    assert np.allclose(image, 1)
    hu, _ = files.patient_volume(0)
    files.write_nifti(tmp_path / "v" / "ct.nii.gz", hu)
    ((image, _),) = task.prepare(str(tmp_path / "v"))
    assert image.shape[1:3] == (67, 67)  # 336 mm, to pixels of 5 mm
    assert image.shape[3] == 16

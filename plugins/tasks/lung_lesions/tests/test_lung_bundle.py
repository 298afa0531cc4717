"""A bundle of a lung-lesions run reads CT volumes with MONAI alone as this task does, and puts the mask where the volume was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import pppml_core as pppml
from pppml_core.config import resolve
from pppml_core.learning.bundle.network import parsed
from pppml_core.registry import Registry
from pppml_core.testing.bundle_alone import predict_alone
from pppml_lung_lesions import plugin

CT = {"source": "ct", "spacing": 6.0}
SETTINGS = {
    "crop": {**CT, "size": 64},
    "three slices": {**CT, "size": 64, "slices": 3, "axis": "sagittal", "window": (-500.0, 1200.0)},
    "resize": {**CT, "size": 48, "fit": "resize"},
    "phantom": {},
}


def as_monai_reads(task, kind: str, file: Path) -> np.ndarray:
    """The image that the steps of a reading make of a file."""
    reading = next(r for r in task.readings() if r.name == kind)
    steps = parsed({"steps": {"_target_": "Compose", "transforms": list(reading.steps)}}, "steps")
    return np.asarray(steps({"image": str(file)})["image"])


@pytest.fixture
def inputs(files: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """Volumes of two orientations and sizes, a DICOM series, a picture, and two sites to train on."""
    files.write_sites(tmp_path / "data", {"a": 3})
    hu, _ = files.patient_volume(7)
    files.write_nifti(tmp_path / "nifti" / "lps.nii.gz", hu)
    files.write_nifti(tmp_path / "nifti" / "ars.nii.gz", hu[:50, :, :9], axes="ARS")
    files.write_dicom(tmp_path / "dicom" / "series", hu)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 64), dtype=np.uint8)).save(tmp_path / "slice.png")
    return SimpleNamespace(data=tmp_path / "data", nifti=tmp_path / "nifti", dicom=tmp_path / "dicom", picture=tmp_path / "slice.png")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_monai_alone_reads_every_kind_of_file_as_this_task_does(inputs: SimpleNamespace, settings: dict) -> None:
    registry = Registry.only(plugin)
    path = {"path": str(inputs.data)} if settings else {}
    task = registry.build("task", resolve({"task": {"use": "lung-lesions", **settings, **path}}, registry=registry).task)
    for kind, file in (
        ("nifti", inputs.nifti / "lps.nii.gz"),
        ("nifti", inputs.nifti / "ars.nii.gz"),
        ("dicom", inputs.dicom / "series"),
        ("picture", inputs.picture),
    ):
        ((expected, _),) = task.prepare(str(file))
        found = as_monai_reads(task, kind, file)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        assert found.std() > 0.1
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{kind} {file.name}")


def test_a_bundle_without_pppml_writes_the_same_masks(inputs: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("ignite")
    pytest.importorskip("fire")
    run = pppml.Experiment(
        task={"use": "lung-lesions", **CT, "path": str(inputs.data), "size": 64},
        model="tiny-net",
        training={"steps": 1},
        run={"rounds": 1},
        reporters=[],
    ).run(tmp_path / "run", report=False)
    bundle = run.export_bundle(tmp_path / "bundle")
    result = run.predict(inputs.nifti, out=tmp_path / "predicted")
    alone = predict_alone(bundle, inputs.nifti, workflow=True)
    for name, expected in zip(result.names, result.probabilities, strict=True):
        np.testing.assert_allclose(alone[name], expected, atol=1e-5, err_msg=name)
        one, other = (nib.load(folder / f"{name}_mask.nii.gz") for folder in (tmp_path / "predicted", bundle / "eval"))
        np.testing.assert_allclose(one.affine, other.affine)
        mask = np.asarray(one.dataobj)
        assert 0 < mask.mean() < 1, "the test tells nothing where all is one class"
        np.testing.assert_array_equal(np.asarray(other.dataobj), mask, err_msg=name)

"""Small volumes in true file formats, written by nibabel and pydicom."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from pppml_core.learning.phantom import draw_patient
from pppml_core.learning.scanner import Scanner
from pppml_core.randomness import Seeds

SPACING = (6.0, 6.0, 8.0)  # x, y, z in mm of the volumes below


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def covidct() -> Path:
    """The real slices of three sources, where they are."""
    folder = Path(os.environ.get("PPPML_SHARED_DATA", Path(__file__).resolve().parents[5] / "shared" / "data"))
    path = folder / "segmentation_multisource_covidct_128.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {folder}; set PPPML_SHARED_DATA")
    return path


def patient_volume(number: int, slices: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """HU int16 and mask uint8 of a phantom, axes (left, posterior, superior) = (x, y, z): 56 x 56 x ``slices`` voxels of ``SPACING``."""
    draw = Seeds(3).generator("test volume", number)
    body = draw_patient(draw, lesions=6)
    scanner = Scanner("test", slice_mm=8.0, noise_hu=10, sharpness=0, fov_mm=56 * 6.0)
    hu, mask = scanner.acquire(body, 40 + 8.0 * np.arange(slices), 56, draw)
    # acquire gives (z from head to feet, y to the back, x to the left)
    return np.rint(hu).astype(np.int16)[::-1].transpose(2, 1, 0), mask[::-1].transpose(2, 1, 0)


#: LPS axes in a RAS world.
AFFINE = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, axes: str | None = None) -> None:
    """Write; ``axes`` stores the same volume with other axis directions."""
    image = nib.Nifti1Image(array, affine)
    if axes is not None:
        want = nib.orientations.axcodes2ornt(axes)
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), want))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def write_dicom(folder: Path, hu: np.ndarray, *, uid: str = "1.2.826.0.1.3680043.8.498.1", names: str = "slice{:03d}.dcm") -> None:
    """A CT series of axial slices of ``hu`` (LPS axes), stored with intercept -1024, in shuffled file order."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(hu.shape[2])
    for k in range(hu.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"{uid}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = folder / names.format(order[k])
        d = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID, d.StudyInstanceUID = CTImageStorage, f"{uid}.{k + 1}", uid, "1.2.3"
        d.Modality, d.PatientID, d.InstanceNumber = "CT", "phantom", k + 1
        d.ImagePositionPatient, d.ImageOrientationPatient = [0.0, 0.0, SPACING[2] * k], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = hu.shape[1], hu.shape[0], 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.RescaleIntercept, d.RescaleSlope, d.RescaleType = -1024, 1, "HU"
        d.PixelData = (hu[:, :, k].T.astype(np.int32) + 1024).astype("<u2").tobytes()
        pydicom.dcmwrite(file, d, enforce_file_format=True)


def write_sites(root: Path, patients: dict[str, int], slices: int = 16) -> None:
    """``site/p0 ...`` NIfTI volumes with masks."""
    number = 0
    for site, count in patients.items():
        for index in range(count):
            hu, mask = patient_volume(number, slices)
            write_nifti(root / site / f"p{index}" / "ct.nii.gz", hu)
            write_nifti(root / site / f"p{index}" / "mask.nii.gz", mask)
            number += 1


@pytest.fixture(scope="session")
def files() -> SimpleNamespace:
    """The writers above (test modules do not import each other)."""
    return SimpleNamespace(
        patient_volume=patient_volume,
        write_nifti=write_nifti,
        write_dicom=write_dicom,
        write_sites=write_sites,
        spacing=SPACING,
        affine=AFFINE,
    )

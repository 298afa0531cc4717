"""Reading, windows and writing: a network that thresholds its input, so that every pixel of the answer is known."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from nibabel.processing import resample_from_to
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from torch import nn

from pppml_core.errors import DataError
from pppml_core.interfaces.task import Task, TaskSpec
from pppml_core.learning.predict import predict, predict_run, read_images, write_outputs
from pppml_core.learning.writing import onto_the_file
from pppml_core.randomness import Seeds

RANDOM = Seeds(11).generator("predict")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spec(kind="segmentation", size=(16, 16), channels=1, classes=("background", "lesion")) -> TaskSpec:
    return TaskSpec(kind, channels, size, classes, "unet", "dice", {"dice": (0.0, 1.0)})


class Threshold(nn.Module):
    """Foreground where the first channel is above a half; refuses any window but its own size."""

    def __init__(self, size=(16, 16), at=0.5):
        super().__init__()
        self.size, self.at, self.sharp = size, at, nn.Parameter(torch.tensor(50.0))

    def forward(self, images):
        assert tuple(images.shape[2:]) == self.size
        logit = self.sharp * (images[:, 0] - self.at)
        return torch.stack([-logit, logit], dim=1)


class Brightness(nn.Module):
    """Class 1 for images that are bright on average."""

    def forward(self, images):
        mean = images.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1) * 20


class Simple(Task):
    def __init__(self, of):
        self.of = of

    def spec(self):
        return self.of

    def sites(self):
        return ()

    def load(self, site):
        raise NotImplementedError

    def card(self):
        raise NotImplementedError


# prediction


@pytest.mark.parametrize("shape", [(16, 16), (40, 23), (10, 50), (7, 9), (64, 64)])
def test_windows_put_every_pixel_where_it_was(shape):
    image = RANDOM.random((1, *shape), dtype=np.float32)
    (got,) = predict(Threshold(), spec(), [image])
    assert got.shape == (2, *shape)
    assert got.dtype == np.float32
    assert np.allclose(got.sum(0), 1, atol=1e-5)
    sure = np.abs(image[0] - 0.5) > 1e-3
    assert np.array_equal(got.argmax(0)[sure], (image[0] > 0.5)[sure])


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_a_volume_goes_through_a_flat_model_slice_by_slice(overlap):
    volume = RANDOM.random((1, 20, 16, 37), dtype=np.float32)
    (got,) = predict(Threshold(), spec(), [volume], overlap=overlap)
    alone = [predict(Threshold(), spec(), [volume[..., k]], overlap=overlap)[0] for k in (0, 17, 36)]
    assert got.shape == (2, 20, 16, 37)
    for k, one in zip((0, 17, 36), alone, strict=True):
        assert np.allclose(got[..., k], one, atol=1e-6)


def test_a_volume_goes_through_a_volume_model():
    volume = RANDOM.random((1, 10, 8, 13), dtype=np.float32)
    (got,) = predict(Threshold((8, 8, 8)), spec(size=(8, 8, 8)), [volume])
    sure = np.abs(volume[0] - 0.5) > 1e-3
    assert np.array_equal(got.argmax(0)[sure], (volume[0] > 0.5)[sure])


def test_images_of_many_sizes_keep_their_order():
    images = [RANDOM.random((1, *size), dtype=np.float32) for size in [(16, 16), (16, 16), (20, 20), (16, 16)]]
    got = predict(Threshold(), spec(), images, batch_size=2)
    for image, p in zip(images, got, strict=True):
        assert np.allclose(p[1], torch.sigmoid(torch.from_numpy(100 * (image[0] - 0.5))), atol=1e-4)


def test_classification_resizes_and_orders():
    images = [np.full((1, 31, 17), value, np.float32) for value in (0.9, 0.1, 0.7)]
    got = predict(Brightness(), spec("classification", (16, 16)), images)
    assert [int(p.argmax()) for p in got] == [1, 0, 1]
    assert got[0].shape == (2,)
    assert got[0][1] == pytest.approx(1 / (1 + np.exp(-16)), abs=1e-4)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout()).double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    predict(model, spec(), [RANDOM.random((1, 16, 16), dtype=np.float32)])
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("of", "shape", "reason"),
    [
        (spec(size=(8, 8, 8)), (1, 16, 16), "takes 3-D images.*give a volume"),
        (spec("classification"), (1, 16, 16, 4), "takes 2-D images.*single images"),
        (spec(channels=3), (1, 16, 16), "1 channels; the model takes 3"),
    ],
)
def test_images_the_model_was_not_made_for(of, shape, reason):
    with pytest.raises(DataError) as caught:
        predict(Threshold(), of, [np.zeros(shape, np.float32)])
    assert re.search(reason, str(caught.value)), caught.value


# files


AFFINE = np.array([[0.0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def save_nifti(path: Path, array, affine=AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def save_series(folder: Path, volume, *, series=None, first=1, origin=-30.0) -> Path:
    """A CT series of ``volume`` (rows, columns, slices) in HU; files are named so that their order is not the slices'."""
    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()
    for k in range(volume.shape[-1]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = (
            CTImageStorage,
            generate_uid(),
            ExplicitVRLittleEndian,
        )
        d = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID, d.Modality, d.SeriesInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT", series
        d.InstanceNumber = first + k
        d.ImagePositionPatient, d.ImageOrientationPatient = [-12.0, -8.0, origin + 2.5 * k], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.RescaleSlope, d.RescaleIntercept = [0.5, 0.75], 1, -1024  # rows 0.5 mm apart, columns 0.75
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = volume.shape[0], volume.shape[1], 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.PixelData = (volume[..., k] + 1024).astype(np.uint16).tobytes()
        d.save_as(folder / f"IM{(k * 7) % 100:03d}-{series[-4:]}.dcm", enforce_file_format=True)
    return folder


def test_nifti_masks_lie_on_the_input(tmp_path):
    volume = RANDOM.random((20, 24, 5), dtype=np.float32)
    path = save_nifti(tmp_path / "scan.nii.gz", volume)
    result = predict_run(Simple(spec()), Threshold(), path, tmp_path / "out", probabilities=True, device="cpu")
    assert [f.name for f in result.files] == ["scan_mask.nii.gz", "scan_probabilities.nii.gz"]
    mask, probabilities = map(nibabel.load, result.files)
    assert np.array_equal(mask.affine, AFFINE)
    assert mask.get_data_dtype() == np.uint8
    sure = np.abs(volume - 0.5) > 1e-3
    assert np.array_equal(np.asarray(mask.dataobj)[sure], (volume > 0.5)[sure])
    assert probabilities.shape == (20, 24, 5, 2)
    assert np.allclose(probabilities.get_fdata().sum(-1), 1, atol=1e-5)
    assert result.names == ("scan",)
    assert result.rows[0]["lesion"] == pytest.approx((volume > 0.5).mean(), abs=0.01)
    assert "<td>scan</td>" in result._repr_html_()


def test_a_dicom_series_is_one_volume_in_hounsfield_units(tmp_path):
    hu = RANDOM.integers(-1000, 1000, size=(12, 10, 4))
    ((image, info),) = read_images(spec(), save_series(tmp_path / "ct", hu))
    assert image.shape == (1, 10, 12, 4)  # columns (x), rows (y), slices, as NIfTI has them
    assert np.array_equal(image[0], hu.swapaxes(0, 1))
    # Column 2, row 3, slice 1 lies at LPS (-12 + 2 * 0.75, -8 + 3 * 0.5, -30 + 2.5) mm; RAS turns the first two signs.
    assert info["affine"] @ [2, 3, 1, 1] == pytest.approx([10.5, 6.5, -27.5, 1])
    model = Threshold(at=0.0)
    result = predict_run(Simple(spec()), model, tmp_path / "ct", tmp_path / "out", device="cpu")
    mask = nibabel.load(result.files[0])
    assert result.files[0].name == "ct_mask.nii.gz"
    assert np.array_equal(np.asarray(mask.dataobj)[image[0] != 0], (image[0] > 0)[image[0] != 0])
    assert np.allclose(mask.affine, info["affine"])


def test_two_series_of_one_folder_are_two_volumes(tmp_path):
    save_series(tmp_path / "ct", np.zeros((8, 8, 3)))
    save_series(tmp_path / "ct", np.full((6, 6, 5), 40))
    found = read_images(spec(), tmp_path)
    assert sorted(image.shape for image, _ in found) == [(1, 6, 6, 5), (1, 8, 8, 3)]
    assert sorted(info["name"] for _, info in found) == ["ct", "ct_2"]


def test_one_dicom_file_is_a_picture(tmp_path):
    hu = RANDOM.integers(-1000, 1000, size=(12, 10, 1))
    (file,) = save_series(tmp_path / "x", hu).iterdir()
    ((image, info),) = read_images(spec(), file)
    assert np.array_equal(image[0], hu[..., 0])  # rows, columns
    assert info["affine"] @ [3, 2, 0, 1] == pytest.approx([10.5, 6.5, -30, 1])
    (mask,) = write_outputs(spec(), [np.zeros((2, 12, 10), np.float32)], [info], tmp_path / "out")
    assert nibabel.load(mask).shape == (12, 10, 1)


def test_pictures_keep_name_shape_and_classes(tmp_path):
    pixels = RANDOM.integers(0, 256, size=(30, 18), dtype=np.uint8)
    (tmp_path / "in" / "b").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    Image.fromarray(255 - pixels).save(tmp_path / "in" / "b" / "a.png")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    result = predict_run(Simple(spec()), Threshold(), tmp_path / "in", tmp_path / "out", probabilities=True, device="cpu")
    assert [f.name for f in result.files] == ["a_mask.png", "a_probabilities.npz", "b_a_mask.png", "b_a_probabilities.npz"]
    mask = np.asarray(Image.open(tmp_path / "out" / "a_mask.png"))
    assert np.array_equal(mask, pixels > 127)
    assert np.asarray(Image.open(tmp_path / "out" / "a_mask.png").convert("RGB")).max() > 100
    assert np.load(tmp_path / "out" / "b_a_probabilities.npz")["probabilities"].shape == (2, 30, 18)


def test_grey_and_colour_become_what_the_model_takes(tmp_path):
    rgb = RANDOM.integers(0, 256, size=(9, 7, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "c.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "g.png")
    colour, grey = read_images(spec(channels=3), tmp_path)
    assert np.allclose(colour[0], np.moveaxis(rgb, -1, 0) / 255)
    assert np.allclose(grey[0], rgb[..., 0][None].repeat(3, 0) / 255)
    one, _ = read_images(spec(), tmp_path)
    assert np.allclose(one[0][0], np.asarray(Image.fromarray(rgb).convert("L")) / 255)
    deep = RANDOM.integers(0, 65536, size=(9, 7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "g.png")
    assert np.allclose(read_images(spec(), tmp_path / "g.png")[0][0][0], deep / 65535)


def test_npz_in_npz_out(tmp_path):
    images = RANDOM.integers(0, 256, size=(11, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", labels=np.zeros(11), images=images)
    result = predict_run(Simple(spec()), Threshold(), tmp_path / "set.npz", tmp_path / "out", probabilities=True, device="cpu")
    with np.load(result.files[0]) as got:
        assert np.array_equal(got["masks"], images > 127)
        assert got["probabilities"].shape == (11, 2, 16, 16)
        assert got["names"].tolist() == [f"set_{i:02d}" for i in range(11)]
    np.savez(tmp_path / "bare.npz", scans=RANDOM.random((2, 16, 16, 3)))
    assert [image.shape for image, _ in read_images(spec(channels=3), tmp_path / "bare.npz")] == [(3, 16, 16)] * 2
    np.savez(tmp_path / "bare.npz", scans=RANDOM.random((8, 9, 10)))
    assert read_images(spec(size=(8, 8, 8)), tmp_path / "bare.npz")[0][0].shape == (1, 8, 9, 10)


def test_classes_become_a_table(tmp_path):
    of = spec("classification", classes=("dark", "bright"))
    np.savez(tmp_path / "x.npz", images=np.stack([np.full((16, 16), v, np.uint8) for v in (250, 3)]))
    result = predict_run(Simple(of), Brightness(), tmp_path / "x.npz", tmp_path / "out", probabilities=True, device="cpu")
    with result.files[0].open() as stream:
        rows = list(csv.DictReader(stream))
    assert [r["class"] for r in rows] == ["bright", "dark"]
    assert [r["name"] for r in rows] == ["x_0", "x_1"]
    assert float(rows[1]["p_dark"]) == pytest.approx(float(rows[1]["probability"]))
    assert result.rows[0]["class"] == "bright"
    assert predict_run(Simple(of), Brightness(), tmp_path / "x.npz", device="cpu").files == ()


def test_slices_a_task_has_cut_become_one_volume_again(tmp_path):
    infos = [{"name": f"v_{k}", "format": "nifti", "affine": AFFINE, "stack": "v"} for k in range(3)]
    slices = [np.stack([np.full((4, 5), 0.1 * k), np.full((4, 5), 1 - 0.1 * k)]).astype(np.float32) for k in range(3)]
    mask, p = write_outputs(spec(), slices, infos, tmp_path, probabilities=True)
    assert nibabel.load(mask).shape == (4, 5, 3)
    assert np.allclose(nibabel.load(p).get_fdata()[1, 2, :, 0], [0, 0.1, 0.2])


def test_what_a_task_has_resampled_is_put_back_onto_the_file():
    """Against nibabel's resampling: another spacing, other axes, an offset."""
    coarse = nibabel.affines.from_matvec(np.diag([-2.0, 1.5, 3.0]) @ np.eye(3)[:, [1, 0, 2]], [4, -3, 2])
    fine = nibabel.affines.from_matvec(np.diag([1.0, 1.0, 1.0]), [-16, -2, 3])
    given = RANDOM.random((14, 12, 9), dtype=np.float32)
    oracle = resample_from_to(nibabel.Nifti1Image(given, coarse), ((18, 20, 24), fine), order=1, mode="constant", cval=0.0).get_fdata()
    got = onto_the_file(given[None], {"affine": coarse, "original_affine": fine, "original_shape": (18, 20, 24)})
    assert got.shape == (1, 18, 20, 24)
    inside = resample_from_to(nibabel.Nifti1Image(np.ones_like(given), coarse), ((18, 20, 24), fine), order=1, cval=0.0).get_fdata() > 0.999
    assert inside.mean() > 0.3
    assert np.allclose(got[0][inside], oracle[inside], atol=1e-4)
    resized = onto_the_file(np.ones((2, 8, 8), np.float32), {"original_shape": (20, 11), "affine": None})
    assert resized.shape == (2, 20, 11)


# bad input


def _text(tmp_path, name):
    file = tmp_path / name
    file.write_text("this is no image")
    return file


def _empty(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    return tmp_path / name


def _nan(tmp_path):
    return save_nifti(tmp_path / "n.nii", np.full((16, 16, 2), np.nan, np.float32))


def _truncated(tmp_path):
    file = save_nifti(tmp_path / "t.nii", np.ones((16, 16, 8), np.float32))
    file.write_bytes(file.read_bytes()[:2000])
    return file


def _no_pixels(tmp_path):
    (file,) = save_series(tmp_path / "d", np.zeros((8, 8, 1))).iterdir()
    data = pydicom.dcmread(file)
    del data.PixelData
    data.save_as(file)
    return file


def _short_pixels(tmp_path):
    (file,) = save_series(tmp_path / "d", np.zeros((8, 8, 1))).iterdir()
    data = pydicom.dcmread(file)
    data.PixelData = data.PixelData[:10]
    data.save_as(file)
    return file


def _mixed_sizes(tmp_path):
    uid = generate_uid()
    save_series(tmp_path / "d", np.zeros((8, 8, 2)), series=uid)
    first = sorted((tmp_path / "d").iterdir())[0]
    data = pydicom.dcmread(first)
    data.Rows, data.PixelData = 4, data.PixelData[:64]
    data.save_as(first)
    return tmp_path / "d"


def _npz(tmp_path, **arrays):
    np.savez(tmp_path / "b.npz", **arrays)
    return tmp_path / "b.npz"


BAD = {
    "missing": (lambda t: t / "nothing.nii", "no such file or folder"),
    "empty folder": (lambda t: t, "no NIfTI, DICOM, PNG, JPG or npz file"),
    "text as nifti": (lambda t: _text(t, "a.nii"), "not a readable NIfTI"),
    "text as packed nifti": (lambda t: _text(t, "a.nii.gz"), "not a readable NIfTI"),
    "text as png": (lambda t: _text(t, "a.png"), "not a readable picture"),
    "text as npz": (lambda t: _text(t, "a.npz"), "not an npz file"),
    "empty npz": (lambda t: _empty(t, "a.npz"), "not an npz file"),
    "text as dicom": (lambda t: _text(t, "a.dcm"), "not a readable DICOM"),
    "unknown ending": (lambda t: _text(t, "a.xyz"), "not a readable DICOM"),
    "NaN": (_nan, "NaN or infinite pixels"),
    "truncated nifti": (_truncated, "not a readable NIfTI"),
    "no pixels": (_no_pixels, "without pixels"),
    "short pixels": (_short_pixels, "cannot be decoded"),
    "mixed sizes": (_mixed_sizes, "differ in size"),
    "npz of text": (lambda t: _npz(t, images=np.array(["a", "b"])), "not numbers"),
    "npz of objects": (lambda t: _npz(t, images=np.array([{}, []], dtype=object)), "objects"),
    "npz of vectors": (lambda t: _npz(t, images=np.zeros(5)), "not a list of 2-D images"),
    "five channels": (lambda t: _npz(t, images=np.zeros((2, 5, 16, 16))), "5 channels; the model takes 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_a_remedy(case, tmp_path):
    make, reason = BAD[case]
    with pytest.raises(DataError, match=reason) as caught:
        read_images(spec(), make(tmp_path))
    assert caught.value.place
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    info = {"name": "a", "format": "picture", "affine": None}
    with pytest.raises(DataError, match="cannot be written"):
        write_outputs(spec(), [np.zeros((2, 4, 4), np.float32)], [info], tmp_path / "taken")

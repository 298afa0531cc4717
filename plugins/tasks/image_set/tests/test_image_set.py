"""``image-set``: folders and npz files of one's own, on small generated files and on the real ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pppml_core.errors import DataError
from pppml_core.interfaces.task import SPLITS
from pppml_core.learning.data.card import card_with_counts, sample_sheet
from pppml_core.testing import PluginSuite, TaskSuite
from pppml_image_set.config import ImageSetConfig
from pppml_image_set.files import read_image, read_mask
from pppml_image_set.plugin import pppml_tasks
from pppml_image_set.task import ImageSet

SHARED = Path(os.environ.get("PPPML_SHARED_DATA", Path(__file__).resolve().parents[4] / ".." / "shared" / "data"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pixels(seed: int, size: tuple[int, ...] = (12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


def dicom(path: Path, stored: np.ndarray, **tags: Any) -> Path:
    """A CT slice as scanners write it: int16 with rescale slope and intercept."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = (
        CTImageStorage,
        generate_uid(),
        ExplicitVRLittleEndian,
    )
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.RescaleSlope, data.RescaleIntercept = 2, -1000
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = stored.astype("<i2").tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def classified(root: Path, suffix: str = "png", sites: tuple[str, ...] = ("Hospital A", "Hospital B"), n: int = 16) -> Path:
    """``site/class/*``: 2 classes, n images each."""
    for s, site in enumerate(sites):
        for c, name in enumerate(("healthy", "sick")):
            folder = root / site / name
            folder.mkdir(parents=True)
            for i in range(n):
                number = 1000 * s + 100 * c + i
                if suffix == "dcm":
                    dicom(folder / f"{i:02d}.dcm", pixels(number).astype(np.int16) * 4, PatientID=f"P{i // 2}{name}")
                else:
                    Image.fromarray(pixels(number)).save(folder / f"{i:02d}.{suffix}")
    return root


def paired(root: Path, sites: tuple[str, ...] = ("a", "b"), n: int = 20, top: int = 255, colour: bool = False) -> Path:
    """``site/images/*`` and ``site/masks/*``; without sites: one site. Masks 0 and 255, or 0 to ``top``."""
    for s, site in enumerate(sites or ("",)):
        for name in ("images", "masks"):
            (root / site / name).mkdir(parents=True)
        for i in range(n):
            image = pixels(100 * s + i, (12, 10, 3) if colour else (12, 10))
            grey = image if image.ndim == 2 else image[..., 0]
            mask = (grey > 128) * np.uint8(255) if top == 255 else (grey // 64 % (top + 1)).astype(np.uint8)
            Image.fromarray(image).save(root / site / "images" / f"p{i // 2}__slice{i}.png")
            Image.fromarray(mask).save(root / site / "masks" / f"p{i // 2}__slice{i}.png")
    return root


def npz(root: Path, **changes: Any) -> Path:
    n = 60
    images = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
    arrays = {
        "images": images,
        "masks": (images[..., 0] // 100).astype(np.uint8),
        "mask_names": np.array(["background", "ground glass", "consolidation"]),
        "source": np.arange(n) // 2 % 3,
        "source_names": np.array(["A", "B", "C"]),
        "patient": np.array([f"p{i // 2}" for i in range(n)]),
    } | changes
    np.savez_compressed(root / "set.npz", **{k: v for k, v in arrays.items() if v is not None})
    return root / "set.npz"


def task(path: Path, **settings: Any) -> ImageSet:
    return ImageSet(ImageSetConfig(path=str(path), **settings))


class _OnFiles(TaskSuite):
    component = pppml_tasks()[0]
    make_files: Callable[[Path], Path]
    extra: dict[str, Any] = {}

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        request.cls.config = {"path": str(type(self).make_files(tmp_path)), **request.cls.extra}


class TestClassFolders(_OnFiles):
    make_files = staticmethod(classified)


class TestDicomFolders(_OnFiles):
    make_files = staticmethod(lambda root: classified(root, "dcm"))
    extra = {"window": (-1000, 1040)}


class TestPairs(_OnFiles):
    make_files = staticmethod(paired)


class TestColourPairsOfManyClassesResized(_OnFiles):
    make_files = staticmethod(lambda root: paired(root, (), top=3, colour=True))
    extra = {"size": (16, 16), "classes": ["background", "one", "two", "three"], "partition": {"by": "quantity", "sites": 2}}


class TestNpz(_OnFiles):
    make_files = staticmethod(npz)


class TestPlugin(PluginSuite):
    plugin = "pppml_image_set.plugin"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "dcm"])
def test_a_folder_of_classes(tmp_path: Path, suffix: str) -> None:
    images = task(classified(tmp_path, suffix))
    assert [(s.slug, s.name) for s in images.sites()] == [("hospital_a", "Hospital A"), ("hospital_b", "Hospital B")]
    spec = images.spec()
    assert (spec.kind, spec.classes, spec.channels, spec.size) == ("classification", ("healthy", "sick"), 1, (12, 10))
    for site in images.sites():
        data = images.load(site.slug)
        counts = {split: np.bincount(data.part(split).labels(), minlength=2).tolist() for split in SPLITS}
        assert np.sum(list(counts.values()), axis=0).tolist() == [16, 16]
        assert all(min(count) >= 1 for count in counts.values()), counts  # every class in every part, though files are sorted by class


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    images = task(classified(tmp_path, n=10))
    data = images.load("hospital_a")
    with pytest.raises(DataError, match=r"no site 'hospital_x'.*did you mean 'hospital_"):
        images.load("hospital_x")
    with pytest.raises(DataError, match=r"no site 'q'.*the sites are hospital_"):
        images.load("q")
    stored = {((pixels(100 * c + i).astype(np.float32) / 255 - 0.5) / 0.5).tobytes(): c for c in (0, 1) for i in range(10)}
    for split in SPLITS:
        part = data.part(split)
        for i in range(len(part)):
            image, label = part.example(i)
            assert stored[image[0].tobytes()] == label


def test_a_flat_folder_is_one_site(tmp_path: Path) -> None:
    root = classified(tmp_path / "all", sites=("clinic",)) / "clinic"
    assert [site.name for site in task(root).sites()] == ["clinic"]
    assert [site.slug for site in task(paired(tmp_path / "pairs", ())).sites()] == ["pairs"]


def test_what_is_told_of_the_images_needs_no_image(tmp_path: Path) -> None:
    """A coordinator without data says all four; a site's own images must then be so."""
    told: dict[str, Any] = {"kind": "classification", "channels": 1, "size": [12, 10], "classes": ["healthy", "sick"]}
    assert ImageSet(ImageSetConfig(**told)).spec() == task(classified(tmp_path / "a"), size=[12, 10]).spec()
    for left_out in told:
        with pytest.raises(DataError, match="no data are named"):
            ImageSet(ImageSetConfig(**{name: value for name, value in told.items() if name != left_out})).spec()
    with pytest.raises(DataError, match="no data are named"):
        ImageSet(ImageSetConfig(**told)).sites()


def test_a_folder_that_lacks_a_class_has_data_of_the_others(tmp_path: Path) -> None:
    root = classified(tmp_path / "a", sites=("Hospital A",))
    shutil.rmtree(root / "Hospital A" / "sick")
    own = task(root, classes=["healthy", "sick"])
    assert set(own.load("hospital_a").train.labels().tolist()) == {0}


def test_channels_as_they_are_asked_for(tmp_path: Path) -> None:
    (site, _), grey = task(classified(tmp_path / "a"), channels=3).sites(), task(classified(tmp_path / "b"))
    image = task(tmp_path / "a", channels=3).load(site.slug).train.example(0)[0]
    assert image.shape == (3, 12, 10)
    assert (image == grey.load(site.slug).train.example(0)[0]).all()
    with pytest.raises(DataError, match="have 3 channels, and `channels` is 1"):
        task(npz(tmp_path), channels=1).sites()


def test_dicom_is_windowed_in_its_own_unit(tmp_path: Path) -> None:
    stored = np.arange(120, dtype=np.int16).reshape(12, 10) * 10  # -1000 to 1380 HU
    hu = stored * 2.0 - 1000
    path = dicom(tmp_path / "a.dcm", stored)
    np.testing.assert_allclose(read_image(path, 1, (-500, 500)), np.clip((hu + 500) / 1000, 0, 1), atol=1e-6)
    np.testing.assert_allclose(read_image(path, 1, None), (hu + 1000) / 2380, atol=1e-6)  # no window: smallest to largest
    inverted = dicom(tmp_path / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read_image(inverted, 1, (-500, 500)), 1 - np.clip((hu + 500) / 1000, 0, 1), atol=1e-6)
    own = read_image(dicom(tmp_path / "c.dcm", stored, WindowCenter=40, WindowWidth=400), 1, None)
    assert own[hu < -170].max() == 0.0
    assert own[hu > 250].min() == 1.0


def test_patients_by_dicom_tag_name_prefix_and_table(tmp_path: Path) -> None:
    tagged = task(classified(tmp_path / "d", "dcm")).load("hospital_a")
    assert "Hospital A/P0healthy" in {g for split in SPLITS for g in tagged.part(split).groups}
    named = task(paired(tmp_path / "p")).load("a")
    assert {g for split in SPLITS for g in named.part(split).groups} == {f"a/p{i}" for i in range(10)}
    root = classified(tmp_path / "t", n=9)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = "\n".join(f"{name},{'unknown' if 'Hospital B' in name else f'q{i // 3}'}" for i, name in enumerate(names))
    (root / "patients.csv").write_text(f"file,patient\n{rows}\n")
    listed = task(root)
    groups = {split: set(listed.load("hospital_a").part(split).groups.tolist()) for split in SPLITS}
    assert set.union(*groups.values()) == {f"q{i}" for i in range(6)}
    assert not groups["train"] & groups["test"]
    assert "18 images is unknown" in listed.card().cautions[0]


def test_mask_files(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 3]], np.uint8)
    palette = Image.new("P", (2, 2))
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 756)
    palette.putdata(values.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), values)
    Image.fromarray(np.repeat(values[..., None], 3, axis=2)).save(tmp_path / "grey_as_colour.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey_as_colour.png"), values)
    Image.fromarray(values > 1).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png") > 0, values > 1)


def test_sixteen_bit_png(tmp_path: Path) -> None:
    stored = (np.arange(120).reshape(12, 10) * 500).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png", 1, None), stored / 65535, atol=1e-6)
    np.testing.assert_allclose(read_image(tmp_path / "a.png", 1, (1000, 2000)), np.clip((stored - 1000.0) / 1000, 0, 1), atol=1e-6)


def test_an_npz_file_of_colour_images_and_three_classes(tmp_path: Path) -> None:
    images = task(npz(tmp_path), partition={"by": "iid", "sites": 2, "unit": "group"})
    assert images.spec().classes == ("background", "ground glass", "consolidation")
    assert images.spec().channels == 3
    homes: dict[str, str] = {}
    for site in images.sites():
        for split in SPLITS:
            for patient in images.load(site.slug).part(split).groups.tolist():
                assert homes.setdefault(patient, f"{site.slug} {split}") == f"{site.slug} {split}"
    assert len(homes) == 30
    assert task(npz(tmp_path), classes=["none", "ggo", "con"]).spec().classes == ("none", "ggo", "con")


def test_card_and_sheet(tmp_path: Path) -> None:
    images = task(paired(tmp_path / "set"))
    card = card_with_counts(images)
    assert sum(card["sites"][0][split]["examples"] for split in SPLITS) == 20
    assert card["sites"][0]["train"]["foreground"]["foreground"] == pytest.approx(0.5, abs=0.05)
    sample_sheet(images, tmp_path / "sheet.png", per_site=3)
    assert (tmp_path / "sheet.png").stat().st_size > 2000


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:90])


def first(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def change(root: Path, act: Callable[[Path], Any]) -> ImageSet:
    act(root)
    return task(root)


def save(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


BAD: list[tuple[str, Callable[[Path], ImageSet], str, str, str]] = [
    ("no such path", lambda f: task(f / "nothing"), "no such file", "nothing", "check the path"),
    ("empty folder", lambda f: task(f), "no image file", "", "site/class"),
    (
        "unreadable PNG",
        lambda f: change(classified(f), lambda r: spoil(first(r, "*.png"))),
        "cannot be read as an image",
        "00.png",
        "repair",
    ),
    ("unreadable DICOM", lambda f: change(classified(f, "dcm"), lambda r: spoil(first(r, "*.dcm"))), "DICOM", "00.dcm", "repair"),
    (
        "text called DICOM",
        lambda f: change(classified(f, "dcm"), lambda r: first(r, "03.dcm").write_text("hello")),
        "cannot be read as DICOM",
        "03.dcm",
        "repair",
    ),
    (
        "DICOM pixels cut off",
        lambda f: change(classified(f, "dcm"), lambda r: first(r, "03.dcm").write_bytes(first(r, "03.dcm").read_bytes()[:-50])),
        "DICOM",
        "03.dcm",
        "repair",
    ),
    ("DICOM of many frames", lambda f: change(classified(f, "dcm"), _frames), "2 frames", "00.dcm", "one image per file"),
    (
        "image without mask",
        lambda f: change(paired(f), lambda r: first(r / "a/masks", "*").unlink()),
        "without a mask",
        "p0__slice0",
        "masks/",
    ),
    (
        "mask without image",
        lambda f: change(paired(f), lambda r: first(r / "a/images", "*").unlink()),
        "without an image",
        "p0__slice0",
        "add",
    ),
    (
        "no masks folder",
        lambda f: change(paired(f), lambda r: (r / "b/masks").rename(r / "b/mask")),
        "no folder 'masks'",
        "b",
        "lay files out",
    ),
    (
        "mask of another size",
        lambda f: change(paired(f), lambda r: save(first(r / "a/masks", "*"), np.zeros((5, 10), np.uint8))),
        "the mask has 5 x 10 pixels, its image 12 x 10",
        "p0__slice0",
        "pixel grid",
    ),
    (
        "mask value without a name",
        lambda f: change(paired(f), lambda r: save(first(r / "a/masks", "*"), np.full((12, 10), 7, np.uint8))),
        "value 7",
        "p0__slice0",
        "name all classes",
    ),
    (
        "mask in colours",
        lambda f: change(paired(f), lambda r: save(first(r / "a/masks", "*"), pixels(0, (12, 10, 3)))),
        "in colours",
        "p0__slice0",
        "palette",
    ),
    ("JPEG mask", lambda f: change(paired(f), _jpeg_mask), "JPEG changes", "p0__slice0", "PNG"),
    (
        "images of two sizes",
        lambda f: change(classified(f), lambda r: save(first(r, "02.png"), pixels(0, (9, 9)))),
        "9 x 9 pixels, others 12 x 10",
        "02.png",
        "size: [12, 10]",
    ),
    (
        "colour among grey",
        lambda f: change(classified(f), lambda r: save(first(r, "02.png"), pixels(0, (12, 10, 3)))),
        "colour image among grey",
        "02.png",
        "convert",
    ),
    ("unknown class folder", lambda f: task(classified(f), classes=["healthy", "sic"]), "'sick' is none of the classes", "sick", "'sic'"),
    ("one patient only", lambda f: change(paired(f), _one_patient), "only 1 groups", "site 'a'", "add data"),
    (
        "misspelt file in patients.csv",
        lambda f: change(classified(f), lambda r: (r / "patients.csv").write_text("file,patient\nHospital A/sick/0.png,p\n")),
        "no image 'Hospital A/sick/0.png'",
        "patients.csv:2",
        "meant",
    ),
    (
        "header of patients.csv",
        lambda f: change(classified(f), lambda r: (r / "patients.csv").write_text("name,id\na,b\n")),
        "the header is name,id",
        "patients.csv:1",
        "file,patient",
    ),
    ("wrong number of class names", lambda f: task(npz(f), classes=["a", "b"]), "2 names for 3 classes", "task.classes", "consolidation"),
    ("class absent in training", lambda f: task(classified(f), classes=["healthy", "sick", "dead"]), "class 'dead'", "", "class"),
]


def _frames(root: Path) -> None:
    path = first(root, "*.dcm")
    data = pydicom.dcmread(path)
    data.NumberOfFrames = 2
    data.PixelData = data.PixelData * 2
    data.save_as(path)


def _jpeg_mask(root: Path) -> None:
    path = first(root / "a/masks", "*")
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()


def _one_patient(root: Path) -> None:
    for path in (*(root / "a/images").iterdir(), *(root / "a/masks").iterdir()):
        path.rename(path.with_name(f"p0__{path.name.partition('__')[2]}"))


@pytest.mark.parametrize(("make", "says", "place", "hint"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_inputs(tmp_path: Path, make: Callable[[Path], ImageSet], says: str, place: str, hint: str) -> None:
    images = make(tmp_path)
    with pytest.raises(DataError) as caught:
        [images.load(site.slug) for site in images.sites()]
    assert says in caught.value.message
    assert place in str(caught.value.place)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("settings", [{"window": (400, -1000)}, {"size": (2, 2)}, {"test_fraction": 1.0}, {"kind": "detection"}])
def test_settings_that_do_not_fit(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageSetConfig(path="x", **settings)


@pytest.mark.parametrize(
    ("name", "kind", "channels", "sites", "size"),
    [
        ("segmentation_multisource_nuclei_128.npz", "segmentation", 3, 6, (64, 64)),
        ("segmentation_multisource_covidct_128.npz", "segmentation", 1, 3, None),
        ("bloodcells_chula_rbc8_28.npz", "classification", 3, 4, None),
        ("ct_or_xray_classification_pneumoniamnist_v1_28.npz", "classification", 1, 1, (32, 32)),
    ],
)
def test_real_files(name: str, kind: str, channels: int, sites: int, size: tuple[int, int] | None) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not in {SHARED}; set PPPML_SHARED_DATA")
    images = task(SHARED / name, kind=kind, size=size)
    assert images.misfits() == []
    assert (images.spec().kind, images.spec().channels, len(images.sites())) == (kind, channels, sites)
    data = images.load(images.sites()[-1].slug)
    image, target = data.train.example(0, np.random.default_rng(0))
    assert image.shape == (channels, *images.spec().size)
    assert target.shape == (() if kind == "classification" else images.spec().size)
    torch.manual_seed(0)
    outputs = torch.nn.Conv2d(channels, len(images.spec().classes), 3, padding=1)(torch.from_numpy(image)[None])
    outputs = outputs if kind == "segmentation" else outputs.mean(dim=(2, 3))
    assert torch.isfinite(images.loss(outputs, torch.from_numpy(target)[None]))


@pytest.mark.parametrize("settings", [{}, {"window": (20, 200)}, {"size": (16, 14)}, {"size": (16, 14), "window": (20, 200)}])
def test_prediction_sees_a_picture_as_training_saw_it_and_tells_monai(tmp_path: Path, settings: dict[str, Any]) -> None:
    from pppml_core.learning.bundle.network import parsed

    root = paired(tmp_path / "set", ())
    images = task(root, **settings)
    data = images.load(images.sites()[0].slug)
    trained = np.stack([part.example(i)[0] for part in (data.train, data.validation, data.test) for i in range(len(part))])
    (reading,) = images.readings()
    assert reading.grid == ("size" if "size" in settings else "same")
    steps = parsed({"steps": {"_target_": "Compose", "transforms": list(reading.steps)}}, "steps")
    half = 1.01 / 255  # resized pixels of 8 bits are rounded in training
    for file in sorted((root / "images").iterdir())[:5]:
        ((image, info),) = images.prepare(str(file))
        assert np.abs(trained - image).max(axis=(1, 2, 3)).min() < (half if "size" in settings else 1e-6)
        assert info.get("original_shape") == ((12, 10) if "size" in settings else None)
        np.testing.assert_allclose(np.asarray(steps({"image": str(file)})["image"]), image, atol=1e-6)


def test_prediction_of_dicom_needs_the_window_of_training(tmp_path: Path) -> None:
    stored = np.arange(120, dtype=np.int16).reshape(12, 10) * 10
    file = dicom(tmp_path / "a.dcm", stored)
    with pytest.raises(DataError, match="what is black and what is white"):
        task(paired(tmp_path / "set")).prepare(str(file))
    ((image, _),) = task(paired(tmp_path / "other"), window=(0, 1000)).prepare(str(file))
    np.testing.assert_allclose(image[0], 2 * read_image(file, 1, (0, 1000)) - 1, atol=1e-6)

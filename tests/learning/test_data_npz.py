"""npz files read with distrust: a table of bad files, each with its place and a hint; and the real files beside the repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pppml_core.errors import DataError
from pppml_core.interfaces.task import SPLITS
from pppml_core.learning.data.collection import assign, site_data
from pppml_core.learning.data.examples import centred
from pppml_core.learning.data.npz import headers, read_multisite, read_npz
from pppml_core.learning.data.partitions import PartitionConfig

SHARED = Path(os.environ.get("PPPML_SHARED_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
N = 24


def arrays(kind: str = "classification") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    found = {
        "images": generator.integers(0, 256, (N, 8, 8)).astype(np.uint8),
        "source": np.arange(N) % 2,
        "source_names": np.array(["Site A", "Site B"]),
        "split": np.repeat([0, 0, 1, 2], N // 4),
        "patient": np.array([f"p{i // 2}" for i in range(N)]),
    }
    if kind == "classification":
        return found | {"labels": np.arange(N) // 2 % 3, "class_names": np.array(["a", "b", "c"])}
    return found | {"masks": (found["images"] > 128).astype(np.uint8), "mask_names": np.array(["background", "lesion"])}


def save(folder: Path, kind: str = "classification", **changes: np.ndarray | None) -> Path:
    path = folder / "cells.npz"
    found = {k: v for k, v in (arrays(kind) | changes).items() if v is not None}
    np.savez_compressed(path, **found)
    return path


def read_all(path: Path, kind: str | None = None) -> None:
    data = read_multisite(path, kind)
    for site in assign(data, PartitionConfig()):
        site_data(data, site.parts, centred)


def truncated(folder: Path) -> Path:
    path = save(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def flipped(folder: Path) -> Path:
    path = save(folder)
    raw = bytearray(path.read_bytes())
    raw[200:260] = bytes(60)  # inside the compressed pixels
    path.write_bytes(raw)
    return path


def pickled(folder: Path) -> Path:
    path = folder / "cells.npz"
    np.savez(path, **(arrays() | {"class_names": np.array(["a", None, 3], dtype=object)}), allow_pickle=True)
    return path


def text(folder: Path) -> Path:
    path = folder / "cells.npz"
    path.write_text("images: none")
    return path


def bare(folder: Path) -> Path:
    path = folder / "cells.npz"
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    return path


def near(folder: Path) -> Path:
    save(folder)
    return folder / "cell.npz"


def floats(value: float) -> np.ndarray:
    images = np.full((N, 8, 8), 0.5, np.float32)
    images[5, 1, 1] = value
    return images


def put(array: np.ndarray, index: int, value: object) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


A, S = arrays(), arrays("segmentation")
#: name, file, kind, what the message says, what the hint says
BAD: list[tuple[str, Callable[[Path], Path], str | None, str, str]] = [
    ("missing file", near, None, "no such file", "'cells.npz'"),
    ("folder", lambda f: f, None, "folder", "path of the .npz"),
    ("truncated", truncated, None, "truncated", "again"),
    ("damaged pixels", flipped, None, "damaged", "again"),
    ("text file", text, None, "npz file", "again"),
    ("bare array", bare, None, "npz file", "again"),
    ("pickled object", pickled, None, "`class_names` holds Python objects", "unicode"),
    ("misspelt images", lambda f: save(f, images=None, image=A["images"]), None, "no array `images`", "`image` meant"),
    ("no labels", lambda f: save(f, labels=None), None, "no array `labels`", "labels"),
    ("masks wanted", lambda f: save(f), "segmentation", "no array `masks`", "masks"),
    ("complex pixels", lambda f: save(f, images=np.zeros((N, 8, 8), complex)), None, "dtype complex128", "uint8"),
    ("volumes", lambda f: save(f, images=np.zeros((N, 8, 8, 8), np.uint8)), None, "shape (24, 8, 8, 8)", "height"),
    ("too few labels", lambda f: save(f, labels=A["labels"][:-1]), None, "`labels` has 23 entries for 24", "every image"),
    ("too few patients", lambda f: save(f, patient=A["patient"][:-1]), None, "`patient` has 23 entries", "every image"),
    ("label too large", lambda f: save(f, labels=put(A["labels"], 4, 3)), None, "example 4 is 3", "class name"),
    ("label negative", lambda f: save(f, labels=put(A["labels"], 4, -1)), None, "example 4 is -1", "correct"),
    ("labels as floats", lambda f: save(f, labels=A["labels"].astype(float)), None, "dtype float64", "number the classes"),
    ("several labels", lambda f: save(f, labels=np.zeros((N, 3), int)), None, "several labels", "one class"),
    ("source out of range", lambda f: save(f, source=put(A["source"], 3, 2)), None, "`source` of example 3 is 2", "source_names"),
    ("split out of range", lambda f: save(f, split=put(A["split"], 3, 9)), None, "`split` of example 3 is 9", "0 is train"),
    ("NaN pixels", lambda f: save(f, images=floats(np.nan)), None, "NaN or infinite values, first in example 5", "repair"),
    ("infinite pixels", lambda f: save(f, images=floats(np.inf)), None, "NaN or infinite values, first in example 5", "repair"),
    ("HU without window", lambda f: save(f, images=A["images"].astype(np.int16) - 1000), None, "what is black", "window"),
    ("masks too small", lambda f: save(f, "segmentation", masks=S["masks"][:, :4]), None, "do not fit", "8 x 8"),
    ("masks too few", lambda f: save(f, "segmentation", masks=S["masks"][:-1]), None, "do not fit", "every image"),
    ("mask value", lambda f: save(f, "segmentation", masks=put(S["masks"], 7, 2)), None, "value 2 (first in example 7)", "name all"),
    ("masks as floats", lambda f: save(f, "segmentation", masks=S["masks"] / 2), None, "dtype float64", "class indices"),
    ("patient in two parts", lambda f: save(f, patient=put(A["patient"], 20, "p0")), None, "'p0' lies in both train and test", "one part"),
    ("empty site", lambda f: save(f, source_names=np.array(["a", "b", "c"])), None, "site 'c' has no example", "empty source"),
    (
        "class absent in training",
        lambda f: save(f, class_names=np.array(["a", "b", "c", "d"])),
        None,
        "no site has a training example of class 'd'",
        "class",
    ),
    (
        "no image",
        lambda f: save(f, **{k: v[:0] for k, v in arrays().items() if not k.endswith("_names")}),
        None,
        "no example",
        "path",
    ),
]


@pytest.mark.parametrize(("make", "kind", "says", "hint"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_files(tmp_path: Path, make: Callable[[Path], Path], kind: str | None, says: str, hint: str) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        read_all(path, kind)
    assert says in caught.value.message
    assert str(path) in str(caught.value.place)
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_every_truncation_is_a_data_error_or_reads(tmp_path: Path) -> None:
    path = save(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_all(path)


def test_headers_tell_shapes_without_reading(tmp_path: Path) -> None:
    assert headers(save(tmp_path))["images"] == ((N, 8, 8), np.dtype(np.uint8))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    assert set(read_npz(save(tmp_path), need=("labels",), optional=("split", "absent"))) == {"labels", "split"}


def test_a_classification_file(tmp_path: Path) -> None:
    data = read_multisite(save(tmp_path))
    assert (data.kind, data.classes, data.channels, data.size) == ("classification", ("a", "b", "c"), 1, (8, 8))
    sites = assign(data, PartitionConfig())
    assert [s.info.slug for s in sites] == ["site_a", "site_b"]
    loaded = site_data(data, sites[0].parts, centred)
    assert [len(loaded.part(split)) for split in SPLITS] == [6, 3, 3]
    assert loaded.test.labels().tolist() == A["labels"][18::2].tolist()
    np.testing.assert_allclose(loaded.test.example(1)[0][0], A["images"][20] / 127.5 - 1, atol=1e-6)


def test_defaults_without_names_source_or_split(tmp_path: Path) -> None:
    path = save(tmp_path, class_names=None, source=None, source_names=None, split=None, patient=None)
    data = read_multisite(path)
    assert data.classes == ("class_0", "class_1", "class_2")
    assert data.source_names == ("all",)
    assert data.parts is None
    assert not data.known.any()


def test_sources_and_splits_may_be_words(tmp_path: Path) -> None:
    split = np.repeat(["train", "train", "val", "test"], N // 4)
    data = read_multisite(save(tmp_path, source=np.where(A["source"] == 1, "x ray", "ct"), split=split))
    assert data.source_names == ("ct", "x ray")
    assert data.parts is not None
    assert data.parts["test"].tolist() == list(range(18, 24))


@pytest.mark.parametrize("factor", [1, 255])
def test_binary_masks_may_use_255(tmp_path: Path, factor: int) -> None:
    data = read_multisite(save(tmp_path, "segmentation", masks=S["masks"] * np.uint8(factor), mask_names=None))
    assert data.classes == ("background", "foreground")
    assert set(np.unique(data.read(np.arange(N))[1])) == {0, 1}


def test_masks_of_many_classes_are_counted(tmp_path: Path) -> None:
    masks = np.arange(N * 64).reshape(N, 8, 8).astype(np.uint8) % 4
    data = read_multisite(save(tmp_path, "segmentation", masks=masks, mask_names=None))
    assert data.classes == (
        "background",
        "class_1",
        "class_2",
        "class_3",
    )


def test_resizing_images_and_masks(tmp_path: Path) -> None:
    data = read_multisite(save(tmp_path, "segmentation"), size=(4, 4))
    images, masks = data.read(np.array([3]))
    assert images.dtype == np.uint8
    assert images.shape == masks.shape == (1, 4, 4)
    assert set(np.unique(masks)) <= {0, 1}
    assert abs(float(images.mean()) - float(A["images"][3].mean())) < 8  # bilinear with anti-aliasing keeps the mean, roughly


def test_a_window_maps_black_and_white(tmp_path: Path) -> None:
    hu = np.linspace(-1200, 600, N * 64).reshape(N, 8, 8).astype(np.int16)
    images, _ = read_multisite(save(tmp_path, images=hu), window=(-1000, 400)).read(np.arange(N))
    np.testing.assert_allclose(images, np.clip((hu + 1000) / 1400, 0, 1), atol=1e-6)


def test_unknown_patients_bind_nothing(tmp_path: Path) -> None:
    patient = A["patient"].copy().astype("U12")
    patient[::2] = "unknown"
    data = read_multisite(save(tmp_path, patient=patient))
    assert data.known.tolist() == [False, True] * (N // 2)
    assign(data, PartitionConfig())  # "unknown" lies in all three parts, and that is no error


SITES = {
    "bloodcells_chula_rbc8_28.npz": {
        "stain_cluster_0": (2665, 273, 617),
        "stain_cluster_1": (2298, 575, 699),
        "stain_cluster_2": (944, 171, 301),
        "stain_cluster_3": (887, 142, 225),
    },
    "ct_or_xray_classification_pneumoniamnist_v1_28.npz": {"guangzhou_wcmc": (3882, 524, 624)},
    "segmentation_multisource_covidct_128.npz": {
        "sirm_italy_medseg": (50, 48),
        "coronacases_org": (470, 88),
        "radiopaedia_org": (193, 44),
    },
    "segmentation_multisource_nuclei_128.npz": {
        "256x256_fluorescence": (233, 34, 67),
        "696x520_fluorescence": (124, 20, 36),
        "320x256_stained_colour": (74, 11, 22),
        "360x360_fluorescence": (62, 10, 18),
        "1024x1024_brightfield_grey": (22, 2, 8),
        "640x512_fluorescence": (18, 2, 6),
    },
}


@pytest.mark.parametrize("name", SITES)
def test_real_files(name: str) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not in {SHARED}; set PPPML_SHARED_DATA")
    data = read_multisite(SHARED / name)
    sites = assign(data, PartitionConfig())
    for site, (slug, counts) in zip(sites, SITES[name].items(), strict=True):
        assert site.info.slug == slug
        found = tuple(len(site.parts[split]) for split in SPLITS)
        if len(counts) == 2:  # no validation in the file: about 15 % of the training patients, or slices
            assert (found[0] + found[1], found[2]) == counts
            assert 0.02 < found[1] / counts[0] < 0.35
        else:
            assert found == counts
    smallest = min(sites, key=lambda s: len(s.parts["train"]))
    loaded = site_data(data, smallest.parts, centred)
    image, target = loaded.test.example(0)
    assert image.shape == (data.channels, *data.size)
    assert -1 <= image.min() < image.max() <= 1
    assert target.shape == (() if data.kind == "classification" else data.size)

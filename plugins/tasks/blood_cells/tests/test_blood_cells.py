"""``blood-cells``: MedMNIST's format and npz files of several sources, on small generated files and on the real ones."""

from __future__ import annotations

import hashlib
import http.server
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pppml_blood_cells import download
from pppml_blood_cells.config import BloodCellsConfig
from pppml_blood_cells.medmnist import BLOODMNIST
from pppml_blood_cells.plugin import pppml_tasks
from pppml_blood_cells.task import BloodCells
from pppml_core.errors import DataError, PluginError
from pppml_core.interfaces.task import SPLITS, Predictions
from pppml_core.learning.data.card import card_with_counts
from pppml_core.testing import PluginSuite, TaskSuite

SHARED = Path(os.environ.get("PPPML_SHARED_DATA", Path(__file__).resolve().parents[4] / ".." / "shared" / "data"))
COUNTS = {"train": 160, "val": 40, "test": 64}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def medmnist_arrays(classes: int = 8, colour: bool = True, size: int = 28) -> dict[str, np.ndarray]:
    """Arrays as in MedMNIST's files: uint8 images, uint8 labels of shape (N, 1); class k has a bright row k."""
    generator, found = np.random.default_rng(0), {}
    for name, n in COUNTS.items():
        labels = generator.permutation(np.arange(n) % classes)
        images = generator.integers(0, 100, (n, size, size, 3) if colour else (n, size, size)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[3 * label : 3 * label + 3] += 120
        found |= {f"{name}_images": images, f"{name}_labels": labels.astype(np.uint8)[:, None]}
    return found


def medmnist(folder: Path, name: str = "bloodmnist.npz", changes: dict[str, Any] | None = None, **how: Any) -> Path:
    arrays = medmnist_arrays(**how) | (changes or {})
    np.savez_compressed(folder / name, **{k: v for k, v in arrays.items() if v is not None})
    return folder / name


def several_sources(folder: Path) -> Path:
    generator, n = np.random.default_rng(1), 240
    smear = np.arange(n) // 4
    np.savez_compressed(
        folder / "cells.npz",
        images=generator.integers(0, 256, (n, 28, 28, 3)).astype(np.uint8),
        labels=(np.arange(n) % 3).astype(np.uint8),
        class_names=np.array(["normal", "target", "burr"]),
        source=(smear % 2).astype(np.uint8),
        source_names=np.array(["Stain 0", "Stain 1"]),
        smear_id=smear.astype(np.int16),
        split=np.array([0, 0, 0, 1, 2], np.uint8)[smear // 2 % 5],
        split_names=np.array(["train", "val", "test"]),
    )
    return folder / "cells.npz"


def task(path: Path | str | None, **settings: Any) -> BloodCells:
    return BloodCells(BloodCellsConfig(path=None if path is None else str(path), **settings))


class _OnFiles(TaskSuite):
    component = pppml_tasks()[0]
    make_file: Callable[[Path], Path]

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        request.cls.config = {"path": str(type(self).make_file(tmp_path)), **request.cls.extra}


class TestMedmnistIid(_OnFiles):
    make_file = staticmethod(medmnist)
    extra = {"partition": {"by": "iid", "sites": 3}}


class TestMedmnistDirichletResized(_OnFiles):
    make_file = staticmethod(partial(medmnist, colour=False, classes=3))
    extra = {"partition": {"by": "dirichlet", "sites": 3, "alpha": 0.5}, "size": 32}


class TestSeveralSources(_OnFiles):
    make_file = staticmethod(several_sources)
    extra: dict[str, Any] = {}


class TestPlugin(PluginSuite):
    plugin = "pppml_blood_cells.plugin"


def test_bloodmnist_has_its_class_names_and_normalization(tmp_path: Path) -> None:
    cells = task(medmnist(tmp_path))
    assert cells.spec().classes == BLOODMNIST
    assert (cells.spec().channels, cells.spec().size) == (3, (28, 28))
    data = cells.load("bloodmnist")
    assert [len(data.part(split)) for split in SPLITS] == list(COUNTS.values())
    raw = medmnist_arrays()
    np.testing.assert_allclose(data.test.example(5)[0], (raw["test_images"][5].transpose(2, 0, 1) / 255 - 0.5) / 0.5, atol=1e-6)
    assert data.test.labels().tolist() == raw["test_labels"][:, 0].tolist()


def test_other_class_counts_and_grey_images(tmp_path: Path) -> None:
    cells = task(medmnist(tmp_path, classes=2, colour=False))
    assert cells.spec().classes == ("class_0", "class_1")
    assert cells.spec().channels == 1


def test_parts_are_divided_separately(tmp_path: Path) -> None:
    cells = task(medmnist(tmp_path), partition={"by": "iid", "sites": 4})
    raw = medmnist_arrays()
    seen = []
    for site in cells.sites():
        data = cells.load(site.slug)
        assert [len(data.part(split)) for split in SPLITS] == [40, 10, 16]
        seen += [data.test.example(i)[0].tobytes() for i in range(16)]
    whole = [((image.transpose(2, 0, 1) / np.float32(255) - 0.5) / 0.5).astype(np.float32).tobytes() for image in raw["test_images"]]
    assert sorted(seen) == sorted(whole)


def test_without_validation_fifteen_percent_is_held_out(tmp_path: Path) -> None:
    cells = task(medmnist(tmp_path, changes={"val_images": None, "val_labels": None}))
    data = cells.load("bloodmnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (136, 24, 64)


def test_whole_smears_stay_at_one_site(tmp_path: Path) -> None:
    cells = task(several_sources(tmp_path), partition={"by": "iid", "sites": 3, "unit": "group"})
    homes: dict[str, tuple[str, str]] = {}
    for site in cells.sites():
        for split in SPLITS:
            for smear in cells.load(site.slug).part(split).groups.tolist():
                assert homes.setdefault(smear, (site.slug, split)) == (site.slug, split)
    assert len(homes) == 60


def test_the_card_counts(tmp_path: Path) -> None:
    card = card_with_counts(task(several_sources(tmp_path)))
    assert [site["name"] for site in card["sites"]] == ["Stain 0", "Stain 1"]
    assert sum(site["train"]["examples"] for site in card["sites"]) == 144
    assert card_with_counts(task(medmnist(tmp_path)))["licence"].startswith("BloodMNIST: CC BY 4.0")


def test_without_a_file_it_is_said_what_those_of_bloodmnist_are(tmp_path: Path) -> None:
    """What a coordinator without data needs; a site that lacks a class still has sites of its own."""
    assert task(None).spec() == task(medmnist(tmp_path)).spec()
    assert task(None, size=64).spec().size == (64, 64)
    labels = np.full((160, 1), 3, np.uint8)
    labels[:2] = 7
    assert len(task(medmnist(tmp_path, changes={"train_labels": labels})).sites()) == 1


BAD: list[tuple[str, Callable[[Path], BloodCells], str, str]] = [
    ("nothing given", lambda f: task(None), "neither a file nor a download", "download: true"),
    ("missing file", lambda f: task(f / "bloodmnst.npz") if medmnist(f) else task(None), "no such file", "'bloodmnist.npz'"),
    ("no test part", lambda f: task(medmnist(f, changes={"test_images": None, "test_labels": None})), "no array `test_labels`", "labels"),
    ("images missing", lambda f: task(medmnist(f, changes={"train_images": None})), "no array `train_images`", "train_images"),
    (
        "several labels",
        lambda f: task(medmnist(f, changes={"train_labels": np.zeros((160, 14), np.uint8)})),
        "several labels per image",
        "one class",
    ),
    ("counts differ", lambda f: task(medmnist(f, changes={"test_labels": np.zeros((63, 1), np.uint8)})), "63 labels for 64", "every image"),
    (
        "volumes",
        lambda f: task(medmnist(f, changes={"train_images": np.zeros((160, 28, 28, 28), np.uint8)})),
        "shape (160, 28, 28, 28)",
        "height",
    ),
    ("neither format", lambda f: task(_other(f)), "no array `images`", "images"),
    (
        "sizes differ",
        lambda f: task(medmnist(f, changes={"test_images": np.zeros((64, 32, 32, 3), np.uint8)})),
        "do not fit",
        "one image size",
    ),
    (
        "class absent in training",
        lambda f: task(medmnist(f, changes={"test_labels": np.full((64, 1), 8, np.uint8)}), partition={"by": "iid", "sites": 2}),
        "no site has a training example of class 'class_8'",
        "class",
    ),
    ("too many sites", lambda f: task(medmnist(f), partition={"by": "iid", "sites": 500}), "too few", "fewer sites"),
    (
        "alpha too small",
        lambda f: task(medmnist(f), partition={"by": "dirichlet", "sites": 20, "alpha": 0.001}),
        "no Dirichlet",
        "larger alpha",
    ),
]


def _other(folder: Path) -> Path:
    np.savez(folder / "other.npz", pixels=np.zeros(3))
    return folder / "other.npz"


@pytest.mark.parametrize(("make", "says", "hint"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_inputs(tmp_path: Path, make: Callable[[Path], BloodCells], says: str, hint: str) -> None:
    cells = make(tmp_path)
    with pytest.raises(DataError) as caught:
        cells.sites()
    assert says in caught.value.message
    assert hint in str(caught.value.hint)
    assert caught.value.place
    assert len(cells.misfits()) == 1
    assert says in cells.misfits()[0]


def test_a_site_that_is_not_there(tmp_path: Path) -> None:
    cells = task(medmnist(tmp_path))
    with pytest.raises(DataError, match=r"no site 'bloodmist'.*did you mean 'bloodmnist'"):
        cells.load("bloodmist")
    with pytest.raises(DataError, match=r"no site 'hospital'.*the sites are bloodmnist"):
        cells.load("hospital")


@pytest.mark.parametrize(
    "settings", [{"path": "x", "download": True}, {"path": "x", "size": 27}, {"path": "x", "partition": {"by": "iid"}}]
)
def test_settings_that_do_not_fit(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BloodCellsConfig(**settings)


# -- download -------------------------------------------------------------------------------------------------------------------------


def test_download_asks_pooch_for_the_file_with_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def retrieve(url: str, **how: Any) -> str:
        asked.append((url, how))
        return str(medmnist(tmp_path, how["fname"], size=64))

    monkeypatch.setitem(sys.modules, "pooch", types.SimpleNamespace(retrieve=retrieve, os_cache=lambda name: Path(name)))
    monkeypatch.setattr(download, "available", lambda: True)
    cells = task(None, download=True, size=64, folder=str(tmp_path))
    assert cells.spec().size == (64, 64)
    ((url, how),) = asked
    assert url == "https://zenodo.org/records/10519652/files/bloodmnist_64.npz?download=1"
    assert how["known_hash"] == "md5:2b94928a2ae4916078ca51e05b6b800b"
    assert how["path"] == str(tmp_path)
    assert how["progressbar"] is True


def test_download_without_pooch_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "available", lambda: False)
    cells = task(None, download=True)
    with pytest.raises(PluginError, match=r"pppml-blood-cells\[download\]"):
        cells.sites()
    assert "pooch" in cells.misfits()[0]


def test_sizes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(DataError, match="no 32 pixel version"):
        task(None, download=True, size=32).sites()


def test_download_over_http_checks_the_checksum_and_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch", reason="the optional extra [download] is not installed")
    pytest.importorskip("tqdm", reason="the optional extra [download] is not installed")
    (tmp_path / "served").mkdir()
    file = medmnist(tmp_path / "served")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(download, "RECORD", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(DataError, match="hash"):
            download.bloodmnist(28, str(tmp_path / "cache"))
        monkeypatch.setitem(download.FILES, 28, (file.name, hashlib.md5(file.read_bytes()).hexdigest()))
        found = download.bloodmnist(28, str(tmp_path / "cache"))
        server.shutdown()
    assert found.read_bytes() == file.read_bytes()
    assert download.bloodmnist(28, str(tmp_path / "cache")) == found  # the server is gone: no second download


# -- real files -----------------------------------------------------------------------------------------------------------------------


def real(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not in {SHARED}; set PPPML_SHARED_DATA")
    return SHARED / name


def train(cells: BloodCells, steps: int, batch: int = 64) -> dict[str, float]:
    """Test scores after some Adam steps of a small network on the training data of all sites."""
    torch.manual_seed(0)
    spec, loaded = cells.spec(), [cells.load(site.slug) for site in cells.sites()]
    pairs = [data.train.example(i) for data in loaded for i in range(len(data.train))]
    images, targets = torch.from_numpy(np.stack([p[0] for p in pairs])), torch.from_numpy(np.stack([p[1] for p in pairs]))
    net = torch.nn.Sequential(
        torch.nn.Conv2d(spec.channels, 16, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(3),
        torch.nn.Flatten(),
        torch.nn.Linear(288, len(spec.classes)),
    )
    optimizer, generator = torch.optim.Adam(net.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (batch,), generator=generator)
        optimizer.zero_grad()
        cells.loss(net(images[chosen]), targets[chosen]).backward()
        optimizer.step()
    tests = [data.test.example(i) for data in loaded for i in range(len(data.test))]
    with torch.no_grad():
        probabilities = net(torch.from_numpy(np.stack([p[0] for p in tests]))).softmax(1).numpy()
    truth = np.stack([p[1] for p in tests])
    return cells.score(Predictions(probabilities, truth, np.arange(len(truth))))


def test_real_medmnist_chest_x_rays_load_and_train() -> None:
    cells = task(real("ct_or_xray_classification_pneumoniamnist_v1_28.npz"), partition={"by": "iid", "sites": 4})
    assert cells.spec().classes == ("normal", "pneumonia")
    score = train(cells, 200)
    assert score["auc"] > 0.88  # logistic regression on pixels reaches 0.93
    assert score["accuracy"] > 0.7


def test_the_same_images_in_medmnists_own_arrays_are_the_same_data(tmp_path: Path) -> None:
    with np.load(real("ct_or_xray_classification_pneumoniamnist_v1_28.npz")) as z:
        arrays = {}
        for number, name in enumerate(("train", "val", "test")):
            chosen = z["split"] == number
            arrays |= {f"{name}_images": z["images"][chosen], f"{name}_labels": z["labels"][chosen][:, None]}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    official = task(tmp_path / "pneumoniamnist.npz").load("pneumoniamnist")
    ours = task(real("ct_or_xray_classification_pneumoniamnist_v1_28.npz")).load("guangzhou_wcmc")
    for split in SPLITS:
        assert official.part(split).labels().tolist() == ours.part(split).labels().tolist()
        np.testing.assert_array_equal(official.part(split).example(7)[0], ours.part(split).example(7)[0])


def test_real_blood_cells_load_by_stain_and_train() -> None:
    cells = task(real("bloodcells_chula_rbc8_28.npz"))
    assert [site.slug for site in cells.sites()] == [f"stain_cluster_{i}" for i in range(4)]
    assert train(cells, 150)["accuracy"] > 0.35  # the largest class has 18 %


@pytest.mark.parametrize("colour", [True, False])
def test_prediction_sees_a_picture_as_training_saw_it_and_tells_monai(tmp_path: Path, colour: bool) -> None:
    from PIL import Image

    from pppml_core.learning.bundle.network import parsed

    cells = task(medmnist(tmp_path, colour=colour))
    stored, trained = medmnist_arrays(colour=colour)["test_images"][5], cells.load("bloodmnist").test.example(5)[0]
    Image.fromarray(stored).save(tmp_path / "cell.png")
    np.savez(tmp_path / "cell.npz", images=stored[None])
    for file in ("cell.png", "cell.npz"):
        ((image, _),) = cells.prepare(str(tmp_path / file))
        np.testing.assert_array_equal(image, trained)
    (reading,) = cells.readings()
    steps = parsed({"steps": {"_target_": "Compose", "transforms": list(reading.steps)}}, "steps")
    np.testing.assert_allclose(np.asarray(steps({"image": str(tmp_path / "cell.png")})["image"]), trained, atol=1e-6)
    np.savez(tmp_path / "raw.npz", images=stored[None].astype(np.float32))
    with pytest.raises(DataError, match="what is black and what is white"):
        cells.prepare(str(tmp_path / "raw.npz"))

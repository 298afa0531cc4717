"""Source npz: the real slices of three sources, and what the data card says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pppml_core.interfaces.task import SPLITS
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.task import LungLesions


def make(path: Path, **changes: np.ndarray | None) -> Path:
    rng = np.random.default_rng(0)
    n = 40
    arrays: dict[str, np.ndarray | None] = {
        "images": rng.integers(0, 256, (n, 32, 32), dtype=np.uint8),
        "masks": (rng.random((n, 32, 32)) < 0.1).astype(np.uint8),
        "mask_names": np.array(["background", "infection"]),
        "source": (np.arange(n) >= 20).astype(np.uint8),
        "source_names": np.array(["Site One", "Site Two"]),
        "split": np.where(np.arange(n) % 20 < 14, 0, 2).astype(np.uint8),
        "split_names": np.array(["train", "val", "test"]),
        "patient": np.array([f"p{i // 2:02d}" for i in range(n)]),
        "label_kind": (np.arange(n) >= 20).astype(np.uint8),
        "label_kind_names": np.array(["radiologist", "model_pseudo_label"]),
        **changes,
    }
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_sites_splits_and_values(tmp_path: Path) -> None:
    task = LungLesions(LungLesionsConfig(source="npz", path=str(make(tmp_path / "a.npz"))))
    assert [s.slug for s in task.sites()] == ["site_one", "site_two"]
    assert task.spec().classes == ("background", "infection")
    data = task.load("site_two")
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 2, 6)
    image, target = data.test.example(0)
    stored = np.load(tmp_path / "a.npz")
    assert np.allclose(image[0], stored["images"][34] / 127.5 - 1, atol=1e-6)
    assert np.array_equal(target, stored["masks"][34])
    assert not set(data.train.groups) & set(data.validation.groups)
    card = task.card()
    assert "radiologist" in card.about
    assert any("pseudo" in caution for caution in card.cautions)


def test_another_size_resizes_images_and_masks(tmp_path: Path) -> None:
    task = LungLesions(LungLesionsConfig(source="npz", path=str(make(tmp_path / "a.npz")), size=48))
    image, target = task.load("site_one").train.example(0)
    assert task.spec().size == (48, 48)
    assert image.shape == (1, 48, 48)
    assert target.shape == (48, 48)
    assert set(np.unique(target)) <= {0, 1}


def test_real_slices(covidct: Path) -> None:
    task = LungLesions(LungLesionsConfig(source="npz", path=str(covidct)))
    assert [s.slug for s in task.sites()] == ["sirm_italy_medseg", "coronacases_org", "radiopaedia_org"]
    assert [("radiologist" in s.about, "pseudo" in s.about) for s in task.sites()] == [(True, False), (False, True), (False, True)]
    sizes, means = {}, []
    for site in task.sites():
        data = task.load(site.slug)
        sizes[site.slug] = tuple(len(data.part(split)) for split in SPLITS)
        means.append(data.train.images.mean())
        if site.slug != "sirm_italy_medseg":
            groups = [set(data.part(split).groups.tolist()) for split in SPLITS]
            assert len(set.union(*groups)) == sum(map(len, groups))
    assert sum(sizes["sirm_italy_medseg"][:2]) == 50
    assert 6 <= sizes["sirm_italy_medseg"][1] <= 9
    assert [sizes[s][2] for s in sizes] == [48, 88, 44]
    assert sizes["coronacases_org"][0] + sizes["coronacases_org"][1] == 470
    assert means[1] < 0.6 * min(means[0], means[2])  # the shift is real
    assert task.load("coronacases_org").test.groups[0] == "coronacases_org_001"
    assert any("SIRM" in caution and "unknown" in caution for caution in task.card().cautions)


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_without_patients_is_contiguous_and_seeded(covidct: Path, seed: int) -> None:
    load = lambda: LungLesions(LungLesionsConfig(source="npz", path=str(covidct), split_seed=seed)).load("sirm_italy_medseg")  # noqa: E731
    a, b = load(), load()
    assert np.array_equal(a.validation.images, b.validation.images)
    stored = np.load(covidct)["images"][:50]
    places = np.array([next(i for i in range(50) if np.array_equal(stored[i], image)) for image in a.validation.images])
    assert 1 + int((np.diff(np.sort(places)) > 1).sum()) <= 3

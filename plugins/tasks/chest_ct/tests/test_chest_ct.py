"""Thick slices, lung boxes, the phantom, RAD-ChestCT's format, splits by patient."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pppml_chest_ct.config import C3, ChestCTConfig
from pppml_chest_ct.phantom import Phantom
from pppml_chest_ct.plugin import pppml_tasks
from pppml_chest_ct.predict import LUNGS
from pppml_chest_ct.rad_chestct import SPACING_MM
from pppml_chest_ct.tables import simplified, site_of
from pppml_chest_ct.task import ChestCT
from pppml_chest_ct.volumes import augment, lung_box, resized, thicken
from pppml_core.interfaces.task import SPLITS
from pppml_core.learning.bundle.network import parsed


def rad(path: Path, **settings: object) -> ChestCT:
    return ChestCT(ChestCTConfig(**{"source": "rad-chestct", "path": str(path), "size": 24, **settings}))  # type: ignore[arg-type]


# Thick slices


def test_thick_slices_are_block_means_at_block_centres() -> None:
    volume = np.random.default_rng(0).normal(size=(30, 4, 4))
    for factor in (3, 5):
        thick = thicken(volume, 1.0, float(factor))
        assert thick.shape == volume.shape
        means = volume.reshape(-1, factor, 4, 4).mean(axis=1)
        assert np.allclose(thick[factor // 2 :: factor], means, atol=1e-6)  # odd factors: a slice lies at the block's centre
        between = thick[factor // 2 + 1]
        assert np.allclose(between, means[0] + (means[1] - means[0]) / factor, atol=1e-6)


@pytest.mark.parametrize("mm", [2.0, 5.0, 10.0])
def test_thick_slices_keep_constants_and_ramps_and_pad_nothing(mm: float) -> None:
    """PPPML-HMI's code pads with zeros; here a volume without zeros stays one, and what is smooth stays where it was."""
    constant = np.full((90, 3, 3), -850, np.int16)
    assert np.allclose(thicken(constant, SPACING_MM, mm), -850, atol=1e-3)
    ramp = np.broadcast_to(np.arange(90.0)[:, None, None] * 10 - 1000, (90, 3, 3))
    thick = thicken(ramp, SPACING_MM, mm)
    margin = int(np.ceil(mm / SPACING_MM))
    assert np.allclose(thick[margin:-margin], ramp[margin:-margin], atol=0.6)  # a slab that ends within a slice: 10 HU steps
    assert thick.mean() == pytest.approx(ramp.mean(), rel=0.02)
    assert thick.min() >= ramp.min()
    assert thick.max() <= ramp.max()


def test_thicker_slices_lose_detail_along_z_only() -> None:
    volume = np.random.default_rng(1).normal(size=(100, 8, 8))
    rough = [np.abs(np.diff(thicken(volume, 0.8, mm), axis=0)).mean() for mm in (0.8, 2.0, 5.0, 10.0)]
    assert rough == sorted(rough, reverse=True)
    assert rough[3] < 0.1 * rough[0]
    assert np.array_equal(thicken(volume, 0.8, 0.5), volume.astype(np.float32))
    within = np.full((50, 2, 2), 7.0)
    within[:, 0, 0] = -3.0
    assert np.allclose(thicken(within, 0.8, 10.0), within, atol=1e-5)


def test_lung_box_finds_air_inside_and_not_outside() -> None:
    volume = np.full((60, 80, 80), -1000, np.int16)
    volume[:, 10:70, 8:72] = 40
    volume[12:50, 20:60, 16:36] = -850
    volume[12:50, 20:60, 44:64] = -850
    box = lung_box(volume)
    assert box is not None
    for found, (low, high) in zip(box, ((12, 50), (20, 60), (16, 64)), strict=True):
        assert low - 8 <= found.start <= low
        assert high <= found.stop <= high + 8
    assert lung_box(np.full((40, 40, 40), 40, np.int16)) is None
    assert lung_box(np.full((40, 40, 40), -1000, np.int16)) is None


# Phantom


def test_phantom_is_the_same_in_any_order() -> None:
    settings = {"patients": 4, "size": 16}
    one, other = Phantom(ChestCTConfig(**settings)), Phantom(ChestCTConfig(**settings))
    last = other.volume("site_3", "train", 3)
    data = one.load("site_3")
    assert np.array_equal(data.train.images[3], last)
    assert not np.array_equal(last, Phantom(ChestCTConfig(**settings, phantom_seed=1)).volume("site_3", "train", 3))


def test_phantom_volumes_have_lungs_and_lesions() -> None:
    source = Phantom(ChestCTConfig(patients=4))
    healthy, sick = [], []
    for number in range(8):
        cube = source.volume("site_2", "test", number)
        assert cube.shape == (32, 32, 32)
        assert cube.dtype == np.int16
        assert -1100 < cube.min() < -950
        assert cube.max() > 250
        lung = (cube[:, 4:-4, 4:-4] < -700).mean()
        (sick if number % 2 else healthy).append(lung)
    assert min(healthy) > 0.2
    assert np.mean(sick) < np.mean(healthy) - 0.02


def test_phantom_sites_differ_in_slice_thickness() -> None:
    settings = {"patients": 4, "size": 32}
    thin, thick = (Phantom(ChestCTConfig(**settings, thickness=(mm,) * 3)).volume("site_1", "train", 1) for mm in (2.0, 10.0))
    assert np.abs(np.diff(thick.astype(float), axis=0)).mean() < 0.85 * np.abs(np.diff(thin.astype(float), axis=0)).mean()
    assert [site.name for site in Phantom(ChestCTConfig()).sites()] == [f"Site {i}: {mm} mm slices" for i, mm in ((1, 2), (2, 5), (3, 10))]


def test_task_form() -> None:
    component = pppml_tasks()[0]
    task = component.load()(component.config(patients=4, size=16))
    spec = task.spec()
    assert (spec.kind, spec.size, spec.classes, spec.model) == ("classification", (16, 16, 16), ("healthy", "patient"), "densenet")
    assert task.misfits() == []
    data = task.load("site_1")
    assert data.train.labels().tolist() == [0, 1, 0, 1]
    image, target = data.train.example(1)
    assert image.shape == (1, 16, 16, 16)
    assert image.dtype == np.float32
    assert np.abs(image).max() <= 1
    assert target.shape == ()
    assert target.dtype == np.int64
    groups = [set(data.part(split).groups.tolist()) for split in SPLITS]
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_augmentation_draws_from_its_generator_only() -> None:
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    target = np.array(1, np.int64)
    a, b = (augment(image, target, np.random.default_rng(3))[0] for _ in range(2))
    assert np.array_equal(a, b)
    assert any(not np.array_equal(augment(image, target, np.random.default_rng(s))[0], image) for s in range(4))


# RAD-ChestCT


def test_sites_are_groups_of_scanner_models(dataset: Path) -> None:
    task = rad(dataset)
    assert [s.slug for s in task.sites()] == list(C3)
    assert "10 mm" in task.sites()[2].about
    names = set()
    for site in task.sites():
        data = task.load(site.slug)
        assert sum(len(data.part(split)) for split in SPLITS) == 8
        assert sorted(set(data.train.labels())) == [0, 1]
        names |= {g for split in SPLITS for g in data.part(split).groups}
    assert len(names) == 24
    card = task.card()
    assert "24 chest CT volumes of 24 patients" in card.about
    assert "groundglass, consolidation" in card.about


def test_a_volume_is_cropped_thickened_resized_and_windowed(dataset: Path) -> None:
    task = rad(dataset, thickness=(5.0, 5.0, 5.0), split="official")
    test = task.load("client_b").test
    scan = test.scans[0]
    stored = np.load(scan.path)["ct"]
    box = lung_box(stored)
    assert box is not None
    expected = resized(thicken(stored[box], 0.8, 5.0), 24)
    image, target = test.example(0)
    assert np.allclose(image[0], np.clip((expected + 600) / 800, -1, 1), atol=1e-5)
    assert int(target) == scan.label
    assert scan.name.startswith("tst")


def test_the_extrema_file_decides_the_box(dataset: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    import shutil

    root = tmp_path / "rad"
    shutil.copytree(dataset, root)
    names = sorted(p.stem for p in root.glob("*.npz"))
    ends = ("sup_axis0min", "inf_axis0max", "ant_axis1min", "pos_axis1max", "rig_axis2min", "lef_axis2max")
    make.table(root / "Extrema_5747.csv", [{"NoteAcc_DEID": n, **dict(zip(ends, (5, 28, 10, 33, 12, 35), strict=True))} for n in names])
    task = rad(root, thickness="as-is")
    train = task.load("client_a").train
    stored = np.load(train.scans[0].path)["ct"][5:29, 10:34, 12:36]
    assert np.allclose(train.example(0)[0][0], np.clip((stored + 600.0) / 800, -1, 1), atol=1e-5)  # 24 voxels are 24 voxels


def test_official_split_follows_the_names(dataset: Path) -> None:
    data = rad(dataset, split="official").load("client_a")
    for split, start in (("train", "trn"), ("validation", "val"), ("test", "tst")):
        assert {scan.name[:3] for scan in data.part(split).scans} == {start}
    assert (len(data.train), len(data.validation), len(data.test)) == (5, 1, 2)


def test_no_patient_lies_in_two_parts_even_at_two_sites(tmp_path: Path, make: SimpleNamespace) -> None:
    """Five of PPPML-HMI's 79 test scans belong to a patient in some client's training set; here none can."""
    make.write(tmp_path, patients=lambda i: f"mrn{i % 13:05d}")  # 13 patients, most of them at two sites
    for seed in range(5):
        task = rad(tmp_path, split_seed=seed)
        parts: dict[str, set[str]] = {split: set() for split in SPLITS}
        total = 0
        for site in task.sites():
            data = task.load(site.slug)
            for split in SPLITS:
                parts[split] |= set(data.part(split).groups.tolist())
                total += len(data.part(split))
        assert total == 24
        assert not parts["train"] & parts["test"]
        assert not parts["train"] & parts["validation"]
        assert not parts["validation"] & parts["test"]


def test_findings_at_any_or_one_location_and_own_labels(dataset: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    count = lambda task: sum(int(task.load(s.slug).part(p).labels().sum()) for s in task.sites() for p in SPLITS)  # noqa: E731
    assert count(rad(dataset)) == 12
    assert count(rad(dataset, abnormalities=["consolidation*right_lower"])) == 12
    names = sorted(p.stem for p in dataset.glob("*.npz"))
    make.table(tmp_path / "mine.csv", [{"scan": n, "infection_to_lung_ratio": 0.05 * (i % 4)} for i, n in enumerate(names)])
    own = {"file": str(tmp_path / "mine.csv"), "column": "infection_to_lung_ratio", "threshold": 0.1, "id": "scan"}
    task = rad(dataset, labels=own)
    assert count(task) == 6
    assert "above 0.1" in task.card().about


def test_per_class_limits_and_groups_choose(dataset: Path) -> None:
    task = rad(dataset, per_class=3)
    assert [sum(len(task.load(s.slug).part(p)) for p in SPLITS) for s in task.sites()] == [6, 6, 6]
    one = rad(dataset, groups={"Flash only": ["somatom definition-flash"], "rest": ["LightSpeed VCT"]}, thickness="as-is")
    assert [s.slug for s in one.sites()] == ["flash_only", "rest"]
    assert any("16 volumes of another scanner" in caution for caution in one.card().cautions)


def test_the_cache_gives_the_same_voxels(dataset: Path, tmp_path: Path) -> None:
    plain = rad(dataset).load("client_c").test.example(0)[0]
    settings = {"cache": str(tmp_path / "cache")}
    first = rad(dataset, **settings).load("client_c").test.example(0)[0]
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 1
    assert files[0].suffix == ".npy"
    stored = np.load(files[0])
    np.save(files[0], np.zeros_like(stored))
    second = rad(dataset, **settings).load("client_c").test.example(0)[0]
    assert np.array_equal(plain, first)
    assert np.allclose(second, 0.75)  # it was read from the cache: 0 HU
    other = rad(dataset, **settings, thickness="as-is").load("client_c").test.example(0)[0]
    assert not np.array_equal(other, second)  # other settings, another file


def test_scanner_models_match_whatever_their_spelling() -> None:
    assert simplified("SOMATOM Definition AS+") == "somatomdefinitionas"
    assert site_of("somatom definition flash", C3) == 0
    assert site_of("Revolution CT", C3) == 0
    assert site_of("Revolution GSI", C3) == 2
    assert site_of("Aquilion ONE", C3) is None


def test_prediction_reads_npz_and_nifti_alike(dataset: Path, tmp_path: Path) -> None:
    import nibabel as nib

    task = rad(dataset, thickness="as-is")
    file = sorted(dataset.glob("*.npz"))[3]
    ((image, info),) = task.prepare(str(file))
    assert info["name"] == file.stem
    assert image.shape == (1, 24, 24, 24)
    volume = np.load(file)["ct"]
    # The same voxels as NIfTI: axes (left, back, head) = (columns, rows, slices upside down), stored in another order.
    affine = np.diag([-0.8, -0.8, 0.8, 1.0])
    nifti = nib.Nifti1Image(volume[::-1].transpose(2, 1, 0), affine)
    nib.save(nib.as_closest_canonical(nifti), tmp_path / "scan.nii.gz")
    ((same, _),) = task.prepare(str(tmp_path / "scan.nii.gz"))
    assert np.allclose(image, same, atol=5e-3)


@pytest.mark.parametrize("settings", [{}, {"crop": "none"}])
def test_monai_alone_reads_a_scan_as_this_task_does(dataset: Path, tmp_path: Path, settings: dict) -> None:
    import nibabel as nib

    volume = np.load(sorted(dataset.glob("*.npz"))[3])["ct"]
    nib.save(nib.Nifti1Image(volume[::-1].transpose(2, 1, 0), np.diag([-0.9, -0.8, 0.7, 1.0])), tmp_path / "scan.nii.gz")
    task = rad(dataset, **settings)
    reading = task.readings()[0]
    assert reading.name == "nifti"
    steps = parsed({"steps": {"_target_": "Compose", "transforms": list(reading.steps)}}, "steps")
    ((expected, _),) = task.prepare(str(tmp_path / "scan.nii.gz"))
    found = np.asarray(steps({"image": str(tmp_path / "scan.nii.gz")})["image"])
    assert found.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_box_of_the_lungs_is_told_to_monai_as_it_is(dataset: Path) -> None:
    """Also where the volume is looked at in steps of several voxels."""
    mask = parsed({"lungs": LUNGS}, "lungs")
    volume = np.load(sorted(dataset.glob("*.npz"))[3])["ct"]
    for one, step in ((volume, 1), (np.kron(volume, np.ones((6, 6, 6), volume.dtype))[:-3, 2:, :-1], 2)):
        assert max(1, min(one.shape) // 100) == step
        box = lung_box(one, margin=0)
        assert box is not None
        assert all(0 < s.start < s.stop < n for s, n in zip(box[1:], one.shape[1:], strict=True))
        found = np.argwhere(np.asarray(mask(torch.from_numpy(one.astype(np.float32))[None]))[0])
        assert [(s.start, s.stop) for s in box] == list(zip(found.min(axis=0), found.max(axis=0) + 1, strict=True))

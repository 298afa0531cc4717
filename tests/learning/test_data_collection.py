"""From sources to sites: parts kept or held out, whole patients, the same shares in every part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import DataError
from pppml_core.interfaces.task import SPLITS
from pppml_core.learning.data.collection import Collection, assign
from pppml_core.learning.data.partitions import PartitionConfig


def collection(
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    source: np.ndarray | None = None,
    parts: dict | None = None,
    known: np.ndarray | None = None,
    n: int = 120,
) -> Collection:
    n = len(labels) if labels is not None else n
    source = np.zeros(n, np.int64) if source is None else source
    names = tuple(f"s{i}" for i in range(int(source.max()) + 1))
    real = np.full(n, groups is not None) if known is None else known
    groups = np.array([f"i{i}" for i in range(n)]) if groups is None else groups.astype(np.str_)
    classes = ("background", "x") if labels is None else tuple(f"c{i}" for i in range(int(labels.max()) + 1))
    kind = "segmentation" if labels is None else "classification"
    return Collection("x.npz", kind, classes, 1, (8, 8), source, names, groups, real, parts, labels, lambda i: (i, i))


def check_whole(data: Collection, sites: tuple) -> None:
    everything = np.concatenate([site.parts[split] for site in sites for split in SPLITS])
    assert sorted(everything.tolist()) == list(range(len(data)))
    owner: dict[str, str] = {}
    for site in sites:
        assert all(len(site.parts[split]) for split in SPLITS)
        for split in SPLITS:
            for group in set(data.groups[site.parts[split]][data.known[site.parts[split]]].tolist()):
                assert owner.setdefault(group, split) == split


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["source", "iid", "dirichlet", "quantity"]), st.sampled_from([None, 2, 3]), st.booleans())
def test_nothing_is_lost_and_no_patient_is_in_two_parts(seed: int, by: str, split_parts: int | None, patients: bool) -> None:
    generator = np.random.default_rng(seed)
    n, count = 240, 80
    groups = generator.integers(0, count, n)
    source = groups % 3
    labels = generator.integers(0, 3, n)
    parts = None
    if split_parts is not None:
        where = np.array([0, 0, 0, 2, 1])[(groups // 3) % 5] if split_parts == 3 else np.where(groups // 3 % 4 == 0, 2, 0)
        parts = {split: np.flatnonzero(where == i) for i, split in enumerate(SPLITS)}
    data = collection(labels, groups if patients else None, source, parts)
    partition = PartitionConfig(by=by, seed=seed, **({} if by == "source" else {"sites": 4, "alpha": 1.0, "minimum": 4}))
    sites = assign(data, partition)
    check_whole(data, sites)
    if parts is not None and by == "source":
        assert np.array_equal(np.sort(np.concatenate([s.parts["test"] for s in sites])), parts["test"])
    if by != "source" and patients and partition.whole_groups:
        homes: dict[str, str] = {}
        for site in sites:
            for group in data.groups[np.concatenate(list(site.parts.values()))].tolist():
                if parts is not None:
                    assert homes.setdefault(group, site.info.slug) == site.info.slug


def test_iid_deals_single_examples_unless_whole_groups_are_asked_for() -> None:
    groups = np.repeat(np.arange(20), 6)
    data = collection(groups=groups, parts={"train": np.arange(90), "validation": np.arange(90, 102), "test": np.arange(102, 120)})
    homes = {}
    for unit in ("auto", "group"):
        sites = assign(data, PartitionConfig(by="iid", sites=3, unit=unit))
        check_whole(data, sites)
        homes[unit] = [len({s.info.slug for s in sites if group in groups[s.parts["train"]]}) for group in range(15)]
    assert np.mean(homes["auto"]) > 2
    assert max(homes["group"]) == 1


def test_a_patient_seen_at_two_sources_is_held_out_at_both() -> None:
    groups = np.array([f"p{i}" for i in range(40)] * 2)
    data = collection(groups=groups, source=np.repeat([0, 1], 40))
    check_whole(data, assign(data, PartitionConfig()))


def test_a_missing_validation_part_is_fifteen_percent_of_the_training_patients() -> None:
    groups = np.repeat(np.arange(60), 2)
    data = collection(groups=groups, parts={"train": np.arange(80), "validation": np.zeros(0, int), "test": np.arange(80, 120)})
    (site,) = assign(data, PartitionConfig())
    assert len(set(groups[site.parts["validation"]])) == 6
    assert len(site.parts["test"]) == 40
    assert site.remarks == ("validation: 15% held out of the training part",)


def test_patients_known_only_in_part_follow_both_rules() -> None:
    known = np.arange(120) < 60
    groups = np.where(known, np.arange(120) // 6, 99)
    data = collection(groups=groups, known=known)
    (site,) = assign(data, PartitionConfig())
    check_whole(data, (site,))
    for split in SPLITS:  # both kinds are in each part
        assert known[site.parts[split]].any()
        assert (~known[site.parts[split]]).any()


def test_dirichlet_skews_the_test_part_as_it_skews_training() -> None:
    labels = np.tile(np.arange(4), 500)
    parts = {split: np.flatnonzero(np.arange(2000) % 10 // 2 % 5 >= 3) for split in ("test",)}
    parts |= {"train": np.setdiff1d(np.arange(2000), parts["test"]), "validation": np.zeros(0, int)}
    data = collection(labels, parts=parts)
    for site in assign(data, PartitionConfig(by="dirichlet", sites=5, alpha=0.3, minimum=20)):
        balance = [np.bincount(labels[site.parts[s]], minlength=4) / len(site.parts[s]) for s in ("train", "test")]
        assert np.abs(balance[0] - balance[1]).max() < 0.08


def test_quantity_with_seed_42_has_the_authors_sizes_in_the_training_part() -> None:
    n = 11_959
    parts = {"train": np.arange(n), "validation": np.arange(n, n + 1712), "test": np.arange(n + 1712, n + 1712 + 3421)}
    data = collection(np.arange(n + 1712 + 3421) % 8, parts=parts)
    sites = assign(data, PartitionConfig(by="quantity", sites=5, seed=42))
    assert [len(site.parts["train"]) for site in sites] == [1265, 3518, 1532, 3252, 2392]
    assert sites[0].parts["train"].tolist() == list(range(1265))
    assert [round(len(site.parts["test"]) / 3421, 2) for site in sites] == [0.11, 0.29, 0.13, 0.27, 0.20]


def test_partitions_depend_on_their_own_seed_only() -> None:
    data = collection(np.arange(120) % 3)

    def trains(seed: int) -> list[list[int]]:
        return [site.parts["train"].tolist() for site in assign(data, PartitionConfig(by="iid", sites=3, seed=seed))]

    assert trains(1) == trains(1)
    assert trains(1) != trains(2)


def test_sources_without_training_examples_and_partitions_without_labels_are_refused() -> None:
    parts = {"train": np.arange(60), "validation": np.arange(60, 70), "test": np.arange(70, 120)}
    data = collection(source=np.repeat([0, 1], 60), parts=parts)
    with pytest.raises(DataError, match="'s1' has no training example"):
        assign(data, PartitionConfig())
    with pytest.raises(DataError, match="class labels"):
        assign(collection(), PartitionConfig(by="dirichlet", sites=2))


def test_a_site_with_one_patient_is_refused_by_name() -> None:
    data = collection(groups=np.where(np.arange(120) < 60, np.arange(120), 500), source=np.repeat([0, 1], 60))
    with pytest.raises(DataError, match="only 1 groups") as caught:
        assign(data, PartitionConfig())
    assert "'s1'" in str(caught.value.place)

"""Examples over arrays, their subsets and concatenations, image conversion, augmentation."""

from __future__ import annotations

import numpy as np
import pytest

from pppml_core.errors import DataError
from pppml_core.learning.data.examples import ArrayExamples, Concatenated, Subset, centred, channels_first, dihedral, unit


def make(n: int = 6, masks: bool = False) -> ArrayExamples:
    images = np.arange(n * 4 * 4 * 3, dtype=np.uint8).reshape(n, 4, 4, 3)
    targets = np.zeros((n, 4, 4), np.uint8) if masks else np.arange(n) % 2
    if masks:
        targets[1::2, 0, 0] = 1
    return ArrayExamples(images, targets, np.array([f"p{i // 2}" for i in range(n)]), centred, dihedral)


def test_an_example_is_float32_channels_first_in_minus_one_to_one() -> None:
    image, target = make().example(2)
    assert image.dtype == np.float32
    assert image.shape == (3, 4, 4)
    np.testing.assert_allclose(image[1, 2, 3], (make().images[2, 2, 3, 1] / 255 - 0.5) / 0.5, atol=1e-6)
    assert target.dtype == np.int64
    assert target.shape == ()


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 7), (1, 5, 7)), ((5, 7, 3), (3, 5, 7)), ((3, 5, 7), (3, 5, 7)), ((5, 7, 1), (1, 5, 7))]
)
def test_layouts_of_one_image(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert channels_first(np.zeros(shape)).shape == expected


def test_a_layout_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(DataError, match="neither grey nor colour"):
        channels_first(np.zeros((5, 7, 9)))


def test_unit_scales_by_dtype() -> None:
    assert unit(np.full((2, 2), 65535, np.uint16)).max() == 1.0
    assert unit(np.full((2, 2), 0.25, np.float64)).dtype == np.float32
    assert unit(np.full((2, 2), 0.25, np.float64)).max() == 0.25


def test_augmentation_draws_only_from_its_generator_and_turns_the_mask_along() -> None:
    examples = make(masks=True)
    for seed in range(16):
        image, mask = examples.example(1, np.random.default_rng(seed))
        again, _ = examples.example(1, np.random.default_rng(seed))
        np.testing.assert_array_equal(image, again)
        plain, plain_mask = examples.example(1)
        np.testing.assert_array_equal(image[:, mask == 1], plain[:, plain_mask == 1])
        assert sorted(image.ravel().tolist()) == sorted(plain.ravel().tolist())


def test_all_eight_symmetries_are_drawn_and_only_half_of_them_for_oblong_images() -> None:
    square, oblong = np.arange(9, dtype=np.float32).reshape(1, 3, 3), np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    label = np.asarray(0)
    assert dihedral(square, label, np.random.default_rng(0))[1].shape == ()
    generator = np.random.default_rng(0)
    assert len({dihedral(square, label, generator)[0].tobytes() for _ in range(200)}) == 8
    assert {dihedral(oblong, label, generator)[0].shape for _ in range(50)} == {(1, 2, 3)}


def test_labels_of_masks_say_whether_there_is_foreground() -> None:
    assert make(masks=True).labels().tolist() == [0, 1, 0, 1, 0, 1]
    assert make().labels().tolist() == [0, 1, 0, 1, 0, 1]


def test_a_subset_keeps_order_groups_and_labels() -> None:
    examples = make()
    part = Subset(examples, [4, 1])
    assert len(part) == 2
    assert part.groups.tolist() == ["p2", "p0"]
    assert part.labels().tolist() == [0, 1]
    np.testing.assert_array_equal(part.example(0)[0], examples.example(4)[0])


def test_concatenation_counts_through_and_tells_equal_groups_of_two_sites_apart() -> None:
    both = Concatenated([make(4), make(6)], ["a", "b"])
    assert len(both) == 10
    assert both.groups.tolist()[3:6] == ["a:p1", "b:p0", "b:p0"]
    np.testing.assert_array_equal(both.example(4)[0], make(6).example(0)[0])
    np.testing.assert_array_equal(both.example(-1)[0], make(6).example(5)[0])
    assert both.labels().tolist() == [0, 1] * 5
    with pytest.raises(IndexError):
        both.example(10)


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="3 images, 2 targets"):
        ArrayExamples(np.zeros((3, 4, 4)), np.zeros(2), np.zeros(3))

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import PppmlError
from pppml_core.values import FixedPoint, Layout, TensorSpec, ValueSpec, automatic_ranges, rms


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def one(length: int, name: str = "w") -> Layout:
    return Layout((TensorSpec(name, (length,)),))


MIXED = Layout((TensorSpec("w", (3, 4)), TensorSpec("scalar", ()), TensorSpec("none", (0, 5)), TensorSpec("mean", (5,), "buffer")))


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5),
    st.sampled_from([np.float32, np.float64]),
)
def test_layout_round_trip(shapes, dtype):
    layout = Layout(tuple(TensorSpec(f"t{i}", shape) for i, shape in enumerate(shapes)))
    tensors = {t.name: generator(i).random(t.shape).astype(dtype) for i, t in enumerate(layout.tensors)}
    flat = layout.flatten(dict(reversed(tensors.items())), dtype)
    assert flat.shape == (layout.length,)
    assert flat.dtype == dtype
    back = layout.unflatten(flat)
    assert list(back) == list(tensors)
    assert all(np.array_equal(back[name], tensors[name]) and back[name].shape == tensors[name].shape for name in tensors)


def test_layout_order_and_views():
    flat = MIXED.flatten({"w": np.arange(12).reshape(3, 4), "scalar": 12, "none": np.zeros((0, 5)), "mean": np.arange(13, 18)})
    assert flat.tolist() == list(range(18))
    MIXED.unflatten(flat)["w"][0, 1] = 99
    assert flat[1] == 99


def test_layout_refuses_what_does_not_fit():
    good = {"w": np.zeros((3, 4)), "scalar": 0, "none": np.zeros((0, 5)), "mean": np.zeros(5)}
    with pytest.raises(PppmlError, match="'mean' is missing"):
        MIXED.flatten({name: good[name] for name in ("w", "scalar", "none")})
    with pytest.raises(PppmlError, match=r"'w' has shape \(4, 3\)"):
        MIXED.flatten({**good, "w": np.zeros((4, 3))})
    with pytest.raises(PppmlError, match="does not fit the layout of length 18"):
        MIXED.unflatten(np.zeros(17))
    with pytest.raises(PppmlError, match="tensors of one name: a"):
        Layout((TensorSpec("a", ()), TensorSpec("b", ()), TensorSpec("a", (2,))))


def test_value_spec():
    assert ValueSpec(3, "integer", 127).dtype() == np.int8
    assert ValueSpec(3, "integer", 128).dtype() == np.int16
    assert ValueSpec(3, "integer", 2**15).dtype() == np.int32
    assert ValueSpec(3, "integer", 2**31).dtype() == np.int64
    assert ValueSpec(3, "integer", None).dtype() == np.int64
    assert ValueSpec(3, "real", None).dtype() == np.float32
    assert ValueSpec(3, "integer", 100).sum_bound(7) == 700
    assert ValueSpec(3, "integer", None).sum_bound(7) is None


# With bits = 16 the step is range / 32767. Values near the ends of the range are where float32 arithmetic would be biased.
@pytest.mark.parametrize("bits", [2, 8, 16, 24])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_unbiased(bits, dtype):
    draws, fixed = 20_000, FixedPoint(one(20_000), (1.0,), bits)
    for i, share in enumerate([0.0, 0.1234, -0.1234, 0.5, 0.7777, -0.9999, 1e-7, -1e-7]):
        value = float(dtype(share))
        integers, saturated = fixed.encode(np.full(draws, value, dtype), generator(i))
        exact = value * fixed.levels
        fraction = exact - np.floor(exact)
        error = np.sqrt(max(fraction * (1 - fraction), 1 / draws) / draws)  # of the mean; never less than one draw's worth
        assert abs(integers.mean() - exact) < 5 * error
        assert saturated == 0
        assert set(np.unique(integers)) <= {np.floor(exact), np.ceil(exact)}


def test_exact_integers_are_never_moved():
    """An integer near the end of the range plus u in float32 would round up once in a thousand draws at 16 bits."""
    fixed = FixedPoint(one(2_000_000), (32_767.0,), 16)
    integers, _ = fixed.encode(np.full(2_000_000, 20_000, np.float32), generator())
    assert np.all(integers == 20_000)


@given(st.integers(2, 24), st.floats(1e-6, 1e6), st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=150, deadline=None)
def test_error_is_below_one_step_and_integers_stay_in_range(bits, limit, seed, dtype):
    fixed = FixedPoint(one(500), (limit,), bits)
    values = (generator(seed).uniform(-1, 1, 500) * limit).astype(dtype)
    values[:4] = limit, -limit, 0, np.nextafter(dtype(0), dtype(1))
    integers, saturated = fixed.encode(values, generator(seed + 1))
    assert integers.dtype == np.int32
    assert np.abs(integers).max() <= fixed.levels == 2 ** (bits - 1) - 1
    assert saturated == np.count_nonzero(np.abs(values.astype(np.float64)) > limit)
    inside = np.clip(values.astype(np.float64), -limit, limit)
    assert np.all(np.abs(fixed.decode(integers) - inside) <= fixed.step(0) * (1 + 1e-9))


def test_saturation_is_counted_exactly_and_clips():
    layout = Layout((TensorSpec("a", (70_000,)), TensorSpec("b", (70_000,))))  # more than one block each
    fixed = FixedPoint(layout, (0.1, 10.0), 16)
    flat = np.zeros(140_000)
    flat[[0, 65_535, 65_536, 69_999]] = 0.2, -0.2, 5, -1e300
    flat[[1, 2]] = 0.1, -0.1  # the ends of the range are inside it
    flat[[70_000, 139_999]] = 9.99, -10.01
    integers, saturated = fixed.encode(flat, generator())
    assert saturated == 5
    assert integers[[0, 65_535, 65_536, 69_999, 139_999]].tolist() == [32_767, -32_767, 32_767, -32_767, -32_767]
    assert integers[[1, 2]].tolist() == [32_767, -32_767]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_the_name_of_its_tensor(bad):
    flat = np.zeros(18, np.float32)
    flat[14] = bad
    with pytest.raises(PppmlError, match="'mean' holds NaN or infinity"):
        FixedPoint(MIXED, (1.0,) * 4).encode(flat, generator())


def test_encoding_is_determined_by_the_generator():
    fixed = FixedPoint(MIXED, (1.0, 2.0, 3.0, 0.5))
    flat = generator(5).normal(size=18).astype(np.float32) * 0.3
    first, again, other = (fixed.encode(flat, generator(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # The rounding itself is part of what every party of a run must do alike: this may change only with the format.
    assert FixedPoint(one(6), (1.0,), 8).encode(np.linspace(-1, 1, 6), generator(3))[0].tolist() == [-127, -76, -25, 25, 76, 127]


def test_decoding_a_sum_is_the_sum_of_decodings():
    fixed = FixedPoint(MIXED, (1.0, 2.0, 3.0, 0.5))
    flats = [generator(i).uniform(-0.5, 0.5, 18) for i in range(7)]
    integers = [fixed.encode(flat, generator(100 + i))[0] for i, flat in enumerate(flats)]
    total = np.sum(integers, axis=0, dtype=np.int64)
    decoded = fixed.decode(total)
    np.testing.assert_allclose(decoded, np.sum([fixed.decode(i) for i in integers], axis=0), rtol=1e-12, atol=1e-15)
    steps = np.concatenate([np.full(tensor.size, fixed.step(i)) for i, tensor in enumerate(MIXED.tensors)])
    assert np.all(np.abs(decoded - np.sum(flats, axis=0)) < 7 * steps)
    assert fixed.decode(total, np.float32).dtype == np.float32
    assert np.array_equal(fixed.decode(total.astype(np.int32)), decoded)


def test_fixed_point_refuses_wrong_parameters():
    for bits in (1, 25, 0, -3):
        with pytest.raises(PppmlError, match="bits must be 2 to 24"):
            FixedPoint(one(1), (1.0,), bits)
    for limit in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(PppmlError, match="range of 'w' must be positive and finite"):
            FixedPoint(one(1), (limit,))
    with pytest.raises(PppmlError, match="2 ranges for 1 tensors"):
        FixedPoint(one(1), (1.0, 1.0))
    with pytest.raises(PppmlError, match="does not fit length 3"):
        FixedPoint(one(3), (1.0,)).encode(np.zeros(2), generator())
    with pytest.raises(PppmlError, match="does not fit length 3"):
        FixedPoint(one(3), (1.0,)).decode(np.zeros(4, np.int64))
    assert FixedPoint(one(3), (1.0,), 2).spec == ValueSpec(3, "integer", 1)
    assert FixedPoint(one(3), (1.0,), 24).spec == ValueSpec(3, "integer", 2**23 - 1)


def test_automatic_ranges_in_the_first_round_are_the_stated_ones():
    ranges = automatic_ranges(MIXED, None, start=0.5, buffer_start={"mean": 7.0})
    assert ranges == (0.5, 0.5, 0.5, 7.0)


def test_automatic_ranges_follow_the_last_aggregate():
    previous = {"w": 0.1, "scalar": 0.01, "none": 0.0, "mean": 2.0}
    ranges = automatic_ranges(MIXED, previous, start=0.5, buffer_start={})
    overall = np.sqrt((12 * 0.1**2 + 0.01**2 + 5 * 2.0**2) / 18)
    np.testing.assert_allclose(ranges, [6.4, 0.64, 64 * 1e-3 * overall, 128.0])
    assert automatic_ranges(MIXED, previous, start=0.5, buffer_start={}, multiple=10)[0] == pytest.approx(1.0)


def test_automatic_ranges_stay_positive_when_nothing_moved():
    ranges = automatic_ranges(MIXED, dict.fromkeys(["w", "scalar", "none", "mean"], 0.0), start=1.0, buffer_start={})
    assert all(r > 0 for r in ranges)
    FixedPoint(MIXED, ranges)


def test_rms():
    assert rms({"a": np.array([3, 4], np.float32), "b": np.zeros((0,)), "c": np.ones(1)}, ["a", "b"]) == {"a": np.sqrt(12.5), "b": 0.0}
    assert np.isfinite(rms({"a": np.full(4, 1e30, np.float32)}, ["a"])["a"])


@pytest.mark.parametrize("u", [0.0, np.nextafter(1, 0)])
def test_the_integer_of_an_end_of_the_range_stays_inside_for_every_draw(u):
    class Fixed:
        def random(self, out):
            out[:] = u

    for limit in generator().uniform(0.01, 10, 300):  # for some, limit * (levels / limit) is a little more than levels
        for bits in (2, 16, 24):
            fixed = FixedPoint(one(2), (limit,), bits)
            integers, saturated = fixed.encode(np.array([limit, -limit]), Fixed())
            assert np.abs(integers).max() <= fixed.levels
            assert saturated == 0

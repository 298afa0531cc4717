"""Fixed point on a million float32 coordinates in twenty tensors, one thread; milliseconds per million are in the extra info."""

import numpy as np
import pytest

from pppml_core.randomness import Seeds
from pppml_core.values import FixedPoint, Layout, TensorSpec

LAYOUT = Layout(tuple(TensorSpec(f"t{i}", (50_000,)) for i in range(20)))
VALUES = np.random.default_rng(0).normal(size=LAYOUT.length).astype(np.float32)


def per_million(benchmark) -> None:
    benchmark.extra_info["ms_per_million"] = round(benchmark.stats["median"] * 1e3 * 1e6 / LAYOUT.length, 2)


@pytest.mark.benchmark(group="fixed point, 1e6 coordinates")
@pytest.mark.parametrize("bits", [16, 24])
def test_encode(benchmark, bits):
    fixed, generator = FixedPoint(LAYOUT, (64.0,) * 20, bits), Seeds(1).generator("rounding")
    benchmark(fixed.encode, VALUES, generator)
    per_million(benchmark)


@pytest.mark.benchmark(group="fixed point, 1e6 coordinates")
def test_decode(benchmark):
    fixed = FixedPoint(LAYOUT, (64.0,) * 20)
    total = fixed.encode(VALUES, Seeds(1).generator("rounding"))[0].astype(np.int64)
    benchmark(fixed.decode, total)
    per_million(benchmark)

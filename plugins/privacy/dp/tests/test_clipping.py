"""Clipping factors: the bound of each kind, and the shares."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import PppmlError
from pppml_dp.clipping import Clipping, layers_of

NORMS = st.floats(0, 1e150)
#: (smaller ones underflow together with the largest norms)
SHARES = st.just(0.0) | st.floats(1e-9, 1)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["flat", "per-layer", "automatic"]),
    norm=st.floats(1e-6, 1e6),
    share=st.just(0.0) | st.floats(1e-9, 1),
    data=st.data(),
)
def test_what_remains_is_at_most_the_share_of_the_clip(kind, norm, share, data):
    norms = torch.tensor([data.draw(st.lists(NORMS, min_size=1, max_size=5))], dtype=torch.float64)
    factors = Clipping(kind, norm).factors(norms, torch.tensor([share], dtype=torch.float64))
    assert math.hypot(*(factors * norms)[0].tolist()) <= share * norm * (1 + 1e-12)


def test_values_by_hand():
    norms, shares = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    assert Clipping("flat", 1.0).factors(norms, shares).tolist() == [[0.2, 0.2], [0.5, 0.5]]
    bound = 1 / math.sqrt(2)
    torch.testing.assert_close(
        Clipping("per-layer", 1.0).factors(norms, shares), torch.tensor([[bound / 3, bound / 4], [0.5, 0.5]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        Clipping("automatic", 2.0).factors(norms, shares), torch.tensor([[2 / 5.01] * 2, [1 / 0.51] * 2], dtype=torch.float64)
    )


def test_gradients_without_layers():
    norms = torch.tensor([0.5, 4.0, math.inf])
    for kind in ("flat", "per-layer"):
        assert Clipping(kind, 1.0).factors(norms).tolist() == [1.0, 0.25, 0.0]
    assert Clipping("flat", 1.0).factors(norms).dtype == torch.float32


@pytest.mark.parametrize("norm", [0.0, -1.0, math.inf, math.nan])
def test_a_norm_that_bounds_nothing_is_refused(norm):
    with pytest.raises(PppmlError, match="bounds nothing"):
        Clipping("flat", norm)


def test_an_unknown_kind_is_refused():
    with pytest.raises(PppmlError, match="no clipping"):
        Clipping("per-batch", 1.0)


def test_the_parameters_of_a_module_are_one_layer():
    assert layers_of(["a.weight", "a.bias", "b.c.weight", "scale", "b.weight"]) == [0, 0, 1, 2, 3]

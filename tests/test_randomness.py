import copy
import itertools
import json
import pickle

import numpy as np
import pytest
import torch

from pppml_core.randomness import Secret, Seeds, entropy, seeded


def test_seeds_are_stable():
    """Golden values: a changed derivation would silently change every published result."""
    assert Seeds(7).integer() == 6975373931843934137
    assert Seeds(7).integer("round", 3, "site", "a") == 581571145071577794
    assert Seeds(7).generator("round", 3).integers(0, 2**32, 3).tolist() == [4158213355, 1123932683, 3349960510]


def test_every_name_has_a_seed_of_its_own():
    names = [(), ("a",), ("a", "b"), ("ab",), ("", "ab"), ("ab", ""), (1,), ("1",), (11,), (1, 1), ("1", 1), ("a", "1", "b"), ("a", 1, "b")]
    seeds = {Seeds(root).integer(*name) for root in (0, 1, -1, 2**80) for name in names}
    assert len(seeds) == 4 * len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_name_does_not_depend_on_where_its_number_came_from():
    assert Seeds(np.int64(7)).integer(np.int32(3), np.str_("a")) == Seeds(7).integer(3, "a")
    with pytest.raises(TypeError):
        Seeds(7).integer(3.0)


def test_streams_do_not_depend_on_order_and_are_uncorrelated():
    draws = {name: Seeds(7).generator("site", name).normal(size=20_000) for name in "abcd"}
    again = {name: Seeds(7).generator("site", name).normal(size=20_000) for name in reversed("abcd")}
    assert all(np.array_equal(draws[name], again[name]) for name in draws)
    for first, second in itertools.combinations(draws.values(), 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(20_000)


def test_seeded_sets_and_restores_the_global_generators():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    with seeded(2**62 + 5):
        inside = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002
    with seeded(2**62 + 5):
        assert torch.equal(torch.rand(3), inside[0])
        assert np.array_equal(np.random.rand(3), inside[1])  # noqa: NPY002


def test_seeded_restores_after_an_error():
    state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    with pytest.raises(KeyError), seeded(3):  # noqa: PT012
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_seeded_restores_the_gpu():
    torch.rand(1, device="cuda")
    state = torch.cuda.get_rng_state()
    with seeded(3):
        torch.rand(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_entropy():
    assert len(entropy(32)) == 32
    assert entropy(32) != entropy(32)


def test_a_secret_never_shows():
    secret = Secret(b"topsecret")
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", repr([secret]), repr({"k": secret})]
    assert all("topsecret" not in text and "746f70" not in text for text in shown)
    assert repr(secret) == "Secret(9 bytes)"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, bytes, vars, iter):
        with pytest.raises(TypeError):
            leak(secret)


def test_secrets_are_not_compared_by_content():
    assert Secret(b"a") != Secret(b"a")
    assert Secret(b"a") != b"a"


def test_wiping_empties_a_secret_and_leaves_the_given_bytes_alone():
    data = bytearray(b"key")
    secret = Secret(data)
    assert (secret.reveal(), len(secret)) == (b"key", 3)
    inner = secret._data
    secret.wipe()
    assert (len(secret), secret.reveal(), bytes(inner)) == (0, b"", b"")
    assert data == b"key"

"""What can be read on the sockets: every byte between the coordinator and the sites is recorded, without TLS, and searched.

Looked for are pieces of each site's encoded contribution, in every width of integer, and of its personal parameters. Under `plain` the
same search must find every contribution; under a secure sum it must find none. A piece is eight numbers, at least six of them different:
in bytes that look random it is there by chance with a probability below 1e-25 (16 bytes or more, at most 1e8 places and 1e5 pieces).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drilling.lines import proxied
from drilling.runs import HE, disturbed, sites, tiny, wrong_sums

from pppml_core.federation.secret_record import SecretRecord
from pppml_core.wire.codec import decode

#: personal layers that have values of their own: BatchNorm stays at each site under fedbn.
FEDBN = {"model": {"use": "tiny-net", "norm": "batch", "width": 16}, "personalization": "fedbn"}
ROUNDS = 2


def pieces(array, dtypes, length):
    """The array's pieces of so many numbers, as bytes of each of these types; dull ones are left out."""
    flat = np.asarray(array).ravel()
    starts = range(0, len(flat) - length + 1, length)
    return [flat[s : s + length].astype(d).tobytes() for d in dtypes for s in starts if len(np.unique(flat[s : s + length])) >= 6]


def contributions(folder, site):
    """Pieces of all that a site put into sums."""
    made = [SecretRecord(folder / "sites" / site).contribution(round) for round in range(1, ROUNDS + 1)]
    assert all(array is not None and array.dtype.kind == "i" and np.abs(array).max() < 2**15 for array in made)
    return [piece for array in made for piece in pieces(array, ("<i2", "<i4", "<i8", ">i2", ">i4", ">i8"), 8)]


def personal(folder, site):
    """Pieces of the personal parameters a site held after each round."""
    states = [decode(path.read_bytes())["personal"] for path in (folder / "sites" / site).glob("state-00000[1-9]")]
    assert len(states) == ROUNDS
    return [piece for state in states for name in sorted(state) for piece in pieces(state[name], ("<f4", "<f8"), 8)]


def found(wanted, recorded):
    return sum(any(piece in data for data in recorded) for piece in wanted)


@pytest.fixture
def recorded_run(monkeypatch, tmp_path):
    """A run through recording proxies: the run, and all bytes that passed."""

    def run(count, **sections):
        with proxied(monkeypatch, record=True) as proxies:
            # Secrets are written to the disk, for the search; nothing else changes on the wire.
            ran = disturbed(tmp_path / "r", tiny(count, ROUNDS, engine="processes", run={"transcript": "secrets"}, **sections))
            data = [part for proxy in proxies.values() for part in proxy.recorded()]
        counted = ran.result["bytes"]
        assert len(proxies) == count
        assert sum(map(len, data)) >= counted["up"] + counted["down"], "every frame was recorded"
        assert wrong_sums(ran, tmp_path / "reference") == []
        return ran.folder, data

    return run


SECURE = {"secagg-plus": (4, "secagg-plus"), "cyclic-he": (3, HE)}


@pytest.mark.drill
@pytest.mark.parametrize("sum", [pytest.param("secagg-plus", marks=pytest.mark.quick), "cyclic-he"])
def test_no_contribution_and_nothing_personal_on_any_socket(recorded_run, sum):
    count, aggregator = SECURE[sum]
    folder, data = recorded_run(count, aggregator=aggregator, **FEDBN)
    for site in sites(count):
        secret = contributions(folder, site) + personal(folder, site)
        assert len(secret) > 1000
        assert found(secret, data) == 0, site
    assert_the_search_finds_the_model(folder, data)


def assert_the_search_finds_the_model(folder: Path, data) -> None:
    """The shared weights travel in the clear, as 32-bit numbers: the same search finds every piece of those that were sent."""
    from pppml_core.federation import checkpoint

    held = checkpoint.load(folder / "checkpoints", [1])
    assert held is not None
    weights = held[1]["server"]["weights"]
    wanted = [piece for name in weights for piece in pieces(weights[name], ("<f4",), 8)]
    assert len(wanted) > 100
    assert found(wanted, data) == len(wanted)


@pytest.mark.drill
def test_under_plain_the_search_finds_every_contribution(recorded_run):
    folder, data = recorded_run(2, aggregator="plain", **FEDBN)
    for site in sites(2):
        made = [SecretRecord(folder / "sites" / site).contribution(round) for round in range(1, ROUNDS + 1)]
        wanted = [piece for array in made for piece in pieces(array, ("<i2",), 8)]
        assert len(wanted) > 500
        assert found(wanted, data) == len(wanted), "as it travels: 16-bit integers"
        assert found(personal(folder, site), data) == 0, "what is personal stays, whatever the sum"

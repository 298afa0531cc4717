"""With encryption that encrypts: every installed back end and scheme, short vectors, the same sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pppml_core.errors import RoundLost
from pppml_core.registry import Registry
from pppml_core.testing.harness import SessionHarness, site_names
from pppml_cyclic_he.aggregator import CyclicHE
from pppml_cyclic_he.config import CyclicHEConfig

SCHEMES = [("pyfhel", "bfv"), ("pyfhel", "bgv"), ("pyfhel", "ckks"), ("tenseal", "bfv"), ("tenseal", "ckks")]
LENGTH = 5000  # more than one ciphertext holds, and no multiple of it


BUT_BGV = [scheme for scheme in SCHEMES if scheme[1] != "bgv"]  # which differs from BFV in the encryption alone: its sum is enough


@pytest.fixture(scope="module", params=BUT_BGV, ids="-".join)
def harness(request: pytest.FixtureRequest) -> Any:
    """``harness(sites, rings, **options)`` over a back end; skips where it is not installed."""
    name, scheme = request.param
    registry = Registry.discover()
    if name not in {component.name for component in registry.components("he-backend")}:
        pytest.skip(f"pppml-he-{name} is not installed")
    component = registry.get("he-backend", name)
    if component.missing():
        pytest.skip(f"{', '.join(component.missing())} is not installed")
    settings = component.config(scheme=scheme)
    backend = component.load()(settings)

    def make(sites: Any, rings: Any, **options: Any) -> SessionHarness:
        aggregator = CyclicHE(CyclicHEConfig(rings=rings, backend=settings), backend=backend)
        return SessionHarness(aggregator, sites, **{"length": LENGTH, **options})

    make.exact = scheme != "ckks"  # type: ignore[attr-defined]
    return make


@pytest.mark.parametrize("harness", SCHEMES, ids="-".join, indirect=True)
def test_the_sum(harness: Any) -> None:
    result = harness(5, 2 if harness.exact else 1, topology="star").run()
    assert result.correct, result.aborted
    assert result.survivors == site_names(5)


def test_the_largest_integers(harness: Any) -> None:
    """Of both signs, in one vector."""
    for bound in (32_767, 2**23 - 1) if harness.exact else (32_767,):
        ends = np.repeat(np.array([bound, -bound], np.int32), 150)
        result = harness(3, 1, length=300, bound=bound, contributions={site: ends.copy() for site in "abc"}).run()
        assert result.correct, (bound, result.aborted)


def test_lost_sites(harness: Any) -> None:
    """Bridged, restarted, or lost for good: as with the transparent double."""
    lost = {"site": "c", "stage": "ring-1", "do": "drop"}
    result = harness(4, 1, length=100, faults=[lost], attempts=2, amnesia=True).run()
    if harness.exact:
        assert result.correct
        assert result.survivors == ("a", "b", "d")
        restarted = harness(4, 1, length=100, faults=[{**lost, "do": "drop-reply"}], attempts=2).run()
        assert restarted.correct
        assert len(restarted.attempts) == 2
    else:
        assert isinstance(result.aborted, RoundLost)
    late = harness(4, 1, length=100, faults=[{"site": "b", "stage": "release", "do": "drop"}], attempts=2).run()
    assert isinstance(late.aborted, RoundLost)


def test_predicted_bytes(harness: Any) -> None:
    """Within 10 % of what a site sends: one ciphertext a ring."""
    made = harness(4, 1, length=20_000)
    predicted, result = made.session().predicted_bytes(), made.run()
    for stage in ("advertise", "ring-1", "release"):
        sent = [p.size for p in result.transcript.sent_by_sites() if p.message.stage == stage]
        assert predicted[stage] == pytest.approx(sum(sent) / len(sent), rel=0.1, abs=512), stage


def test_damaged_ciphertexts_are_refused(harness: Any) -> None:
    """A box that is changed on its way never becomes a wrong sum."""
    for do in ("tamper", "tamper-body"):
        result = harness(3, 1, length=100, faults=[{"site": "b", "stage": "ring-1", "do": do}]).run()
        assert not result.crashes
        assert result.sum is None

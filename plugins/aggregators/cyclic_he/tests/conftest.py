"""What several test files use: the ring over a transparent back end, an approximate double, and what curious parties remember."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pppml_core.component import ComponentConfig
from pppml_core.errors import WireError
from pppml_core.federation.identity import agreement_key, public_key
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.randomness import Secret, entropy
from pppml_core.testing import SessionHarness
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.wire.messages import SERVER
from pppml_cyclic_he import server
from pppml_cyclic_he.aggregator import CyclicHE
from pppml_cyclic_he.config import CyclicHEConfig

TRANSPARENT = TransparentConfig(security_bits=128)


class ApproximateBackend(HEBackend):
    """An approximate scheme in the clear: each encryption adds Gaussian noise. ``spread`` is what a sum's error really is."""

    def __init__(self, planned: float = 0.01, spread: float | None = None) -> None:
        super().__init__(ComponentConfig())
        self.planned, self.spread = planned, planned if spread is None else spread

    def plan(self, value, additions):
        size = 16 + 8 * value.length
        return HEParams(
            "double", "ckks", "approximate", value.length, None, 1, 0, additions, 128, None, self.planned, size, {"sites": additions}
        )

    def keygen(self, params):
        key = entropy(16)
        return key, Secret(key)

    def encrypt(self, params, public, values):
        assert values.dtype == np.float64
        noise = np.random.default_rng().normal(0, self.spread / params.additions**0.5, params.length)
        return public + (values + noise).tobytes()

    def add(self, params, left, right):
        if left[:16] != right[:16]:
            raise WireError("other keys")
        return left[:16] + (np.frombuffer(left, np.float64, offset=16) + np.frombuffer(right, np.float64, offset=16)).tobytes()

    def decrypt(self, params, secret, ciphertext):
        if secret.reveal() != ciphertext[:16]:
            raise WireError("another key")
        return np.frombuffer(ciphertext, np.float64, offset=16)


def aggregator(rings: int | str = "auto", backend: HEBackend | None = None) -> CyclicHE:
    """The hardened ring."""
    return CyclicHE(CyclicHEConfig(rings=rings, backend=TRANSPARENT), backend=backend or TransparentBackend(TRANSPARENT))


def run(sites: Any = 5, *faults: dict[str, Any], rings: int | str = "auto", backend: HEBackend | None = None, **options: Any) -> Any:
    """One session in the harness, over short vectors."""
    return harness(sites, rings=rings, backend=backend, faults=faults, **options).run()


def harness(sites: Any = 5, *, rings: int | str = "auto", backend: HEBackend | None = None, **options: Any) -> SessionHarness:
    return SessionHarness(aggregator(rings, backend), sites, **{"length": 8, **options})


class Memory:
    """What curious parties keep: the server's keys, and of a site everything its states ever held."""

    def __init__(self) -> None:
        self.server_keys: dict[bytes, bytes] = {}

    def agreement_key(self, *args: Any) -> tuple[bytes, bytes]:
        private, public = agreement_key(*args)
        self.server_keys[public] = private
        return private, public

    def view(self, result: Any, parties: Any, number: int) -> dict[str, Any]:
        """The view of a coalition that forgets nothing, of one attempt. The result must be of a harness with ``remember``."""
        view = result.view(parties, number)
        for entry in view["attempts"]:
            attempt = next(a for a in result.attempts if a.number == number)
            entry["states"] = {site: _remembered(attempt.history[site]) for site in attempt.cohort if site in parties}
            adverts = [m for m in view["messages"] if m.attempt == attempt.number and m.stage == "keys" and m.kind == "session"]
            if SERVER in parties and adverts:
                entry["states"][SERVER] = {"hop": self.server_keys[adverts[0].body["server"]["key"]]}
        view["states"] = view["attempts"][-1]["states"] if view["attempts"] else {}
        return view


def _remembered(history: Any) -> dict[str, Any]:
    """The union of a site's states; the key of each box it sent, by ring."""
    held: dict[str, Any] = {"boxes": {}}
    for state in history:
        held.update(state)
        if "box" in state and state["links"]:
            held["boxes"].setdefault(str(len(state["links"]) - 1), state["box"])
    return held


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Curious parties' memory; the server's keys are kept from here on."""
    kept = Memory()
    monkeypatch.setattr(server, "agreement_key", kept.agreement_key)
    return kept


@pytest.fixture(scope="session")
def cyclic() -> SimpleNamespace:
    """The helpers of this file."""
    return SimpleNamespace(
        run=run, harness=harness, aggregator=aggregator, Approximate=ApproximateBackend, transparent=TRANSPARENT, public_key=public_key
    )

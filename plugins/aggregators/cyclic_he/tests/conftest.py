"""What several test files use: the ring over a transparent back end, an approximate double, and what curious parties remember."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pppml_core.component import ComponentConfig
from pppml_core.errors import RoundAborted, WireError
from pppml_core.federation.identity import agreement_key, public_key, verify
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.randomness import Secret, entropy
from pppml_core.testing import SessionHarness, edited
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.wire.messages import SERVER, Exchange, Relay
from pppml_cyclic_he import adverts, hops, server
from pppml_cyclic_he import site as site_module
from pppml_cyclic_he.aggregator import CyclicHE
from pppml_cyclic_he.config import CyclicHEConfig

TRANSPARENT = TransparentConfig(security_bits=128)
Change = Callable[[dict[str, Any]], dict[str, Any]]


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
    """What curious parties keep: sites never forget anything of their states, and here are the server's keys."""

    def __init__(self) -> None:
        self.server_keys: dict[bytes, bytes] = {}

    def agreement_key(self, *args: Any) -> tuple[bytes, bytes]:
        private, public = agreement_key(*args)
        self.server_keys[public] = private
        return private, public

    def view(self, result: Any, parties: Any, number: int) -> dict[str, Any]:
        """The view of a curious coalition, of one attempt."""
        view = result.view(parties, number)
        adverts = [m for m in view["messages"] if m.stage == "keys" and m.kind == "session"]
        for entry in view["attempts"] if SERVER in parties and adverts else ():
            entry["states"][SERVER] = {"hop": self.server_keys[adverts[0].body["server"]["key"]]}
        return view


@pytest.fixture(scope="session", autouse=True)
def _one_look_at_a_signature() -> Iterator[None]:
    """All parties are in one process: what one has found valid is valid for the others, by the same key. A third of the time."""
    patch, valid = pytest.MonkeyPatch(), set[tuple[Any, ...]]()

    def once(public: bytes, signature: Any, statement: bytes, party: str) -> None:
        if not isinstance(signature, bytes) or (public, signature, statement) not in valid:
            verify(public, signature, statement, party)
            valid.add((public, signature, statement))

    for module in (adverts, hops, server, site_module):
        patch.setattr(module, "verify", once)
    yield
    patch.undo()


# -- lying servers ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lie() -> Callable[..., Any]:
    """``lie(stage, change, *sites, **options)``: a session of five sites whose server asks all, or only these sites, for something else."""

    def go(stage: str, change: Change, *sites: str, **options: Any) -> Any:
        def edit(operation: Any) -> Any:
            if operation.stage != stage or not isinstance(operation, Exchange):
                return operation
            whole = {site: {**operation.common, **own} for site, own in operation.bodies.items()}
            bodies = {site: change(body) if not sites or site in sites else body for site, body in whole.items()}
            return replace(operation, bodies=bodies, common={})

        result = run(5, coordinate=lambda session, ctx: edited(session, ctx, edit), **options)
        assert not result.crashes, result.crashes
        return result

    return go


@pytest.fixture
def on_the_way() -> Callable[..., Any]:
    """``on_the_way(stage, before, change)``: a server that stops a ring before one site and hands it something else."""

    def go(stage: str, before: str, change: Change) -> Any:
        def coordinate(session: Any, ctx: Any) -> Any:
            honest = session.coordinate(ctx)
            try:
                asked = next(honest)
                while True:
                    if isinstance(asked, Relay) and asked.stage == stage and before in asked.path:
                        place, body = asked.path.index(before), asked.body
                        if place:
                            body = (yield replace(asked, path=asked.path[:place])).body
                        outcome = yield replace(asked, path=asked.path[place:], body=change(dict(body)))
                    else:
                        outcome = yield asked
                    asked = honest.send(outcome)
            except StopIteration as stop:
                return stop.value
            finally:
                honest.close()

        return coordinate

    return go


@pytest.fixture
def refused() -> Callable[..., None]:
    """``refused(result, stage, reason, *sites)``: these sites, or all that were asked, refused there for this reason; there is no sum."""

    def go(result: Any, stage: str, reason: str, *sites: str) -> None:
        assert not result.crashes, result.crashes
        found = {site: why for where, site, why in result.losses if where == stage}
        assert found, f"nobody refused in {stage}: {result.losses}, {result.aborted}"
        assert set(found) >= set(sites), f"{set(sites) - set(found)} did not refuse in {stage}: {result.losses}"
        for site in sites or found:
            assert re.search(reason, found[site]), f"{site}: {found[site]}"
        assert result.sum is None
        assert isinstance(result.aborted, RoundAborted)

    return go


@pytest.fixture
def nobody_released() -> Callable[..., None]:
    """``nobody_released(result, *but)``: no site but these gave up unmasking material."""

    def go(result: Any, *but: str) -> None:
        assert [site for site, over in result.released.items() if over and site not in but] == []

    return go


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Curious parties' memory: from here on nobody forgets anything."""
    kept = Memory()
    monkeypatch.setattr(site_module, "forget", lambda state, *names: dict(state))
    monkeypatch.setattr(server, "agreement_key", kept.agreement_key)
    return kept


@pytest.fixture(scope="session")
def cyclic() -> SimpleNamespace:
    """The helpers of this file."""
    return SimpleNamespace(
        run=run, harness=harness, aggregator=aggregator, Approximate=ApproximateBackend, transparent=TRANSPARENT, public_key=public_key
    )

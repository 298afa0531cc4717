"""``pppml plan --measure``: the seconds of one training batch and of one sum over the cohort, on this machine, through the real code."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.engines.courier import Address, Courier
from pppml_core.federation.identity import KEY_BYTES, Identity
from pppml_core.federation.plan import Plan
from pppml_core.federation.policy import Policy
from pppml_core.federation.session_side import SessionSide
from pppml_core.interfaces.aggregation import ServerContext, Session
from pppml_core.interfaces.engine import Loss
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.training import LocalTraining
from pppml_core.randomness import Secret, entropy, seeded
from pppml_core.wire.codec import decode_message
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import SERVER
from pppml_core.wire.transcript import Transcript


@dataclass(frozen=True)
class _Context:
    """A site that contributes given numbers, with an identity that lives as long as the measurement."""

    site: str
    cohort: tuple[str, ...]
    values: npt.NDArray[Any]
    roster: Mapping[str, bytes]
    sign: Callable[[bytes], bytes]
    policy: Policy = field(default_factory=Policy)
    run: bytes = bytes(16)
    round: int = 1
    attempt: int = 1
    binding: bytes = bytes(32)

    def contribution(self) -> npt.NDArray[Any]:
        """The numbers."""
        return self.values

    def entropy(self, length: int) -> bytes:
        """From the operating system."""
        return entropy(length)

    def release(self, sites: Sequence[str]) -> None:
        """There is only this one sum."""


class _Sides:
    """A transport to session sides alone."""

    def __init__(self, sides: Mapping[str, SessionSide]) -> None:
        self._sides = sides

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Each side answers."""
        for site, frame in frames:
            yield site, self._sides[site].answer(decode_message(frame), frame)

    def clock(self) -> Mapping[str, float]:
        """Nothing is trained."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""


def measure_plan(plan: Plan) -> dict[str, float]:
    """``{"one batch": seconds, "one sum": seconds}``; the sum is over the whole cohort, all parties one after another."""
    parts = plan.assembly
    assert parts is not None
    site = parts.task.sites()[0].slug
    data = LocalTraining(parts.load(site).train, parts.config.training, parts.seeds, site=site, round=1, rounds=1)
    rule = plain_gradients(lambda outputs, targets: parts.task.loss(outputs, targets), parts.config.training.precision)
    with seeded(0):
        batch = next(iter(data.sample("measure", 1)))
        rule(parts.model, batch)
        began = time.perf_counter()
        rule(parts.model, batch)
        measured = {"one batch": time.perf_counter() - began}
    if plan.guarantees is not None:
        cohort = tuple(plan.sizes)[: parts.config.run.cohort]
        ranges = tuple(1.0 for _ in parts.shared) if parts.config.encoding.use == "fixed" else ()
        pipeline = parts.pipeline(ranges, plan.max_weight, parts.mechanism.plan(parts.privacy_setting(plan.sizes)))
        measured["one sum"] = _one_sum(parts.aggregator.plan(pipeline.spec, cohort), cohort)
    return measured


def _one_sum(session: Session, cohort: tuple[str, ...]) -> float:
    bound = session.value.bound
    generator = np.random.default_rng(0)
    length = session.value.length
    values = (
        generator.standard_normal(length).astype(np.float32) if bound is None else generator.integers(-bound, bound, length, dtype=np.int32)
    )
    identities = {party: Identity(Secret(entropy(KEY_BYTES))) for party in (*cohort, SERVER)}
    roster = {party: identity.public for party, identity in identities.items()}
    sides = {s: SessionSide(session, _Context(s, cohort, values, roster, identities[s].sign)) for s in cohort}
    coordinator = session.coordinate(ServerContext(bytes(16), 1, 1, cohort, bytes(32), roster, identities[SERVER].sign))
    with tempfile.TemporaryDirectory() as folder, Transcript(Path(folder)) as transcript:
        courier, manifest = Courier(_Sides(sides), "p2p", transcript), Manifest(session.fields)
        began = time.perf_counter()
        try:
            operation = next(coordinator)
            while True:
                operation = coordinator.send(courier.perform(operation, Address(bytes(16), 1, 1), manifest))
        except StopIteration:
            return time.perf_counter() - began
        finally:
            coordinator.close()

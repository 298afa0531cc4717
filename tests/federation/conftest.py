"""Small runs of the tiny task in this process, and what went over their wire."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pppml_core.api import Experiment, Run
from pppml_core.federation import resident as resident_module
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.identity import provision
from pppml_core.interfaces.engine import Job
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import SERVER, Message
from pppml_core.wire.transcript import read_payload, read_transcript

SECTIONS: dict[str, Any] = {"task": "tiny", "run": {"rounds": 2, "seed": 5}}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``clock("2026-01-01T06:59")`` is what it is at a site from then on."""

    def turn(text: str) -> None:
        monkeypatch.setattr(resident_module, "local_time", lambda: datetime.datetime.fromisoformat(text))

    return turn


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.only()


@pytest.fixture(scope="session")
def experiment(registry) -> Callable[..., Experiment]:
    """An experiment on the tiny task; ``run`` is laid over two rounds with seed 5."""

    def make(*, only: Registry | None = None, **sections: Any) -> Experiment:
        return Experiment(registry=only or registry, **{**SECTIONS, **sections, "run": {**SECTIONS["run"], **sections.get("run", {})}})

    return make


@pytest.fixture(scope="session")
def go(experiment, tmp_path_factory) -> Callable[..., Run]:
    """Run it, silently and without a report, in a folder of its own or the one given."""

    def run(folder: Path | None = None, *, reporters: bool = False, resume: bool | None = None, **sections: Any) -> Run:
        where = folder or tmp_path_factory.mktemp("run") / "r"
        return experiment(**sections).run(where, reporters=reporters, report=False, resume=resume)

    return run


@pytest.fixture(scope="session")
def wire() -> Callable[..., list[Message]]:
    """The messages of a run with ``transcript: payloads``, by stage, round and direction."""

    def read(run: Run, stage: str | None = None, round: int | None = None, up: bool = True) -> list[Message]:
        hops = [
            h for h in read_transcript(run.folder) if stage in (None, h.stage) and round in (None, h.round) and (h.sender != SERVER) == up
        ]
        return [decode_message(read_payload(run.folder, h.sha256)) for h in hops]

    return read


@pytest.fixture
def job(tmp_path) -> Callable[[Assembly], Job]:
    """A job over an assembly, as an engine gets it."""
    from pppml_core.config import to_plain

    def make(assembly: Assembly) -> Job:
        sites = tuple(s.slug for s in assembly.task.sites())
        sizes = {s: len(assembly.load(s).train) for s in sites}
        provision(tmp_path / "sites", (*sites, SERVER))
        return Job(b"r" * 16, to_plain(assembly.config), tmp_path / "sites", sites, sizes, {}, parts=assembly)

    return make


@dataclass
class Contributions:
    """Contributions of one round as real numbers: ``values[site]`` is the weighted update with weight and metrics, ``weights[site]``."""

    values: dict[str, np.ndarray]
    weights: dict[str, float]
    raw: dict[str, np.ndarray]

    def mean(self, length: int) -> np.ndarray:
        """The weighted mean of the updates: shape ``(length,)``."""
        total = sum(v[:length] for v in self.values.values())
        return total / sum(self.weights.values())


@pytest.fixture(scope="session")
def contributions(wire) -> Callable[..., Contributions]:
    """What the sites of a run sent in a round of ``plain``, decoded by hand with the announced ranges."""

    def read(run: Run, round: int, attempt: int | None = None) -> Contributions:
        parts = run._assembly
        sizes = [t.size for t in parts.shared]
        length = sum(sizes)
        values, weights, raw = {}, {}, {}
        terms = {m.attempt: m.body["terms"] for m in wire(run, "open", round, up=False)}
        for message in wire(run, "contribute", round):
            sent = message.body.get("values")
            if message.kind != "reply" or attempt not in (None, message.attempt) or np.shape(sent) != (parts.layout(metrics=True).length,):
                continue
            flat = sent.astype(np.float64)
            if sent.dtype.kind == "i":
                levels = 2 ** (parts.config.encoding.bits - 1) - 1
                ranges = np.repeat(terms[message.attempt]["ranges"], sizes)
                flat[:length] *= ranges / levels
                flat[length] /= levels
            values[message.sender], weights[message.sender], raw[message.sender] = flat, float(flat[length]), sent
        return Contributions(values, weights, raw)

    return read


@pytest.fixture(scope="session")
def flat() -> Callable[..., np.ndarray]:
    """The shared tensors of a state as one float64 vector, in the layout's order."""

    def flatten(run: Run, state: Any) -> np.ndarray:
        return np.concatenate([np.asarray(state[t.name], np.float64).ravel() for t in run._assembly.shared])

    return flatten

"""HE back ends side by side: the same integers, the same number of additions, 128-bit security, whatever parameters each one plans."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pppml_core.benchmarking.memory import peak_memory
from pppml_core.errors import ConfigError, PlanRefused
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.registry import Registry
from pppml_core.values import ValueSpec

#: the largest absolute value of one integer: 16 bits, as ``encoding.bits`` has it.
BOUND = 2**15 - 1


@dataclass(frozen=True)
class HERow:
    """One back end with one scheme.

    Args:
        name: ``pyfhel bfv``.
        refused: why it plans no parameters for this; then the rest is zero.
        seconds: of ``keys``, ``encrypt``, ``add`` and ``decrypt``, one vector each (medians).
        bytes_per_number: of a serialized ciphertext, for each number of the vector.
        error: largest error of a decrypted sum, in units of the encrypted integers; 0 for exact schemes.
        noise_budget: bits left after all additions; None where it cannot be measured.
        peak_bytes: how far memory grew while one vector was encrypted, added and decrypted.
        params: what was planned.
    """

    name: str
    refused: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_per_number: float = 0.0
    error: float = 0.0
    noise_budget: float | None = None
    peak_bytes: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


def compare_he(uses: Sequence[Any], *, length: int = 100_000, additions: int = 5, repeats: int = 3) -> Iterator[HERow]:
    """A row for each back end and each of its schemes, as they are done.

    Args:
        uses: names, or maps with ``use`` and settings (then only those). Raises the registry's error for one that is not there.
        length: integers in a vector.
        additions: vectors in a sum.
        repeats: times each step is timed.
    """
    registry = Registry.discover()
    backends = [named for use in uses for named in backends_of(registry, use)]
    for name, backend in backends:
        yield he_row(name, backend, length, additions, repeats)


def backends_of(registry: Registry, use: Any) -> list[tuple[str, HEBackend]]:
    """A back end as it is configured, or, given by name alone, once for each scheme its settings offer."""
    settings = {"use": use} if isinstance(use, str) else use
    if not isinstance(settings, Mapping) or not isinstance(settings.get("use"), str):
        raise ConfigError(f"{use!r} names no HE back end", place="--use", hint="--use tenseal,pyfhel or --use '{use: pyfhel, scheme: bgv}'")
    name, given = settings["use"], {key: value for key, value in settings.items() if key != "use"}
    component = registry.get("he-backend", name)
    make = component.load()
    offered = component.config.model_fields.get("scheme")
    schemes = get_args(offered.annotation) if offered is not None and not given else ()
    variants = [{"scheme": scheme} for scheme in schemes] or [given]
    try:
        return [(" ".join([name, *map(str, chosen.values())]), make(component.config.model_validate(chosen))) for chosen in variants]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        hint = f"{name} has: {', '.join(component.config.model_fields) or 'no settings'}"
        raise ConfigError(first["msg"], place=".".join([name, *map(str, first["loc"])]), hint=hint) from error


def he_row(name: str, backend: HEBackend, length: int, additions: int, repeats: int) -> HERow:
    """Times one back end; its sum is checked against the exact one."""
    value = ValueSpec(length, "integer", BOUND)
    try:
        params = backend.plan(value, additions)
    except PlanRefused as refused:
        return HERow(name, refused=str(refused))
    draw = np.random.default_rng(0)
    vectors = [draw.integers(-BOUND, BOUND, length, dtype=np.int32, endpoint=True) for _ in range(additions)]
    clock = _Clock()
    public, secret = clock.timed("keys", backend.keygen, params)
    total = b""
    with peak_memory() as peak:
        for vector in vectors:
            ciphertext = clock.timed("encrypt", backend.encrypt, params, public, _plain(params, vector))
            total = clock.timed("add", backend.add, params, total, ciphertext) if total else ciphertext
        for _ in range(repeats):
            decrypted = clock.timed("decrypt", backend.decrypt, params, secret, total)
    for _ in range(repeats - additions):
        clock.timed("encrypt", backend.encrypt, params, public, _plain(params, vectors[0]))
    found = params.integers(decrypted) if params.arithmetic == "exact" else decrypted
    error = float(np.abs(found - np.sum(vectors, axis=0, dtype=np.int64)).max())
    return HERow(
        name,
        seconds=clock.medians(),
        bytes_per_number=len(total) / length,
        error=error,
        noise_budget=backend.noise_budget(params, secret, total),
        peak_bytes=peak.bytes,
        params={
            "security_bits": params.security_bits,
            "arithmetic": params.arithmetic,
            "limbs": params.limbs,
            "plaintext_modulus": params.plaintext_modulus,
            "log2_failure": params.log2_failure,
            "error_std": params.error_std,
            **params.details,
        },
    )


def _plain(params: HEParams, integers: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    return params.residues(integers) if params.arithmetic == "exact" else integers.astype(np.float64)


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, step: str, call: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        self.seconds.setdefault(step, []).append(time.perf_counter() - began)
        return result

    def medians(self) -> dict[str, float]:
        return {step: median(times) for step, times in self.seconds.items()}

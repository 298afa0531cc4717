"""What is charged: noisy sums over Poisson samples, as they stand in a ledger and as an accountant composes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pppml_core.errors import DataError

_NUMBERS = {"gaussian": ("sample_rate", "noise_multiplier"), "skellam": ("sample_rate", "noise_multiplier", "variance", "d1", "d2")}


@dataclass(frozen=True)
class Event:
    """``count`` noisy sums, each over a fresh Poisson sample of the same units.

    Args:
        kind: of the noise.
        sample_rate: probability with which each unit is in a sample, in (0, 1]; 1: no sampling.
        noise_multiplier: standard deviation of the noise in units of the L2 sensitivity, at least 0. For Skellam noise the square root
            of ``variance`` over ``d2``, for the reader; :meth:`skellam` computes it.
        count: how many such sums, at least 0.
        variance: of integer Skellam noise, per coordinate; 0 for Gaussian noise.
        d1: L1 sensitivity of the integer sum (Skellam).
        d2: L2 sensitivity of the integer sum (Skellam).

    Raises:
        DataError: a value is of another type, or out of its range: beyond what is said above, numbers are 0 or between 1e-100 and 1e100.
    """

    kind: Literal["gaussian", "skellam"]
    sample_rate: float
    noise_multiplier: float
    count: int = 1
    variance: float = 0.0
    d1: float = 0.0
    d2: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _NUMBERS:
            raise _malformed(f"noise is gaussian or skellam, not {self.kind!r}")
        for name in ("sample_rate", "noise_multiplier", "variance", "d1", "d2"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1e-100 <= value <= 1e100):
                raise _malformed(f"{name} is 0 or a number of 1e-100 to 1e100, not {value!r}")
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 0:
            raise _malformed(f"count is a whole number of at least 0, not {self.count!r}")
        if not 0 < self.sample_rate <= 1:
            raise _malformed(f"sample_rate is in (0, 1], not {self.sample_rate!r}")
        if self.kind == "gaussian" and (self.variance or self.d1 or self.d2):
            raise _malformed("variance, d1 and d2 belong to Skellam noise")
        if self.kind == "skellam":
            if not self.d1 >= self.d2 > 0:
                raise _malformed(f"an integer vector has d1 >= d2 > 0, not {self.d1!r} and {self.d2!r}")
            if not math.isclose(self.noise_multiplier, math.sqrt(self.variance) / self.d2, rel_tol=1e-9):
                raise _malformed(f"noise_multiplier {self.noise_multiplier!r} is not the root of the variance over d2")

    @classmethod
    def skellam(cls, sample_rate: float, variance: float, d1: float, d2: float, count: int = 1) -> Event:
        """Skellam noise of this variance on a sum of integer sensitivities ``d1`` (L1) and ``d2`` (L2)."""
        if not (variance >= 0 and d2 > 0):
            raise _malformed(f"Skellam noise has a variance of at least 0 and d2 above 0, not {variance!r} and {d2!r}")
        return cls("skellam", sample_rate, math.sqrt(variance) / d2, count, variance, d1, d2)

    def times(self, count: int) -> Event:
        """The same ``count`` times over."""
        return replace(self, count=self.count * count)

    def to_charge(self) -> dict[str, Any]:
        """A ledger entry: plain data."""
        numbers = {name: float(getattr(self, name)) for name in _NUMBERS[self.kind]}
        return {"event": f"poisson-{self.kind}", **numbers, "count": self.count}

    @classmethod
    def from_charge(cls, charge: Mapping[str, Any]) -> Event:
        """The event of a ledger entry; keys a ledger adds beside it (round, time) are not read. Raises DataError if malformed."""
        if not isinstance(charge, Mapping):
            raise _malformed(f"a charge is a mapping, not {type(charge).__name__}")
        name = charge.get("event")
        kind = name.removeprefix("poisson-") if isinstance(name, str) and name.startswith("poisson-") else None
        if kind not in _NUMBERS:
            raise _malformed(f"event is poisson-gaussian or poisson-skellam, not {name!r}")
        if missing := [key for key in (*_NUMBERS[kind], "count") if key not in charge]:
            raise _malformed(f"{', '.join(missing)} missing from {name}")
        return cls(kind, count=charge["count"], **{key: charge[key] for key in _NUMBERS[kind]})  # type: ignore[arg-type]


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Equal events as one, in an order that does not depend on theirs: composition does not either, to the last bit."""
    counts: Counter[Event] = Counter()
    for event in events:
        counts[replace(event, count=1)] += event.count
    together = [replace(event, count=count) for event, count in counts.items() if count]
    return tuple(sorted(together, key=lambda event: (event.kind, event.sample_rate, event.noise_multiplier, event.variance, event.d1)))


def _malformed(reason: str) -> DataError:
    return DataError(reason, place="privacy charge", hint="entries are written by the run itself; do not edit its ledger")

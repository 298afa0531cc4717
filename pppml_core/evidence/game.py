"""The distinguishing game: can the bytes that a party sees tell which of two messages was encrypted?

Reading ciphertext as if it was a gradient gives noise, of broken encryption as well. Here an adversary chooses two worlds, sees messages
of either, learns on half of them which statistics differ, and names the world of each message of the other half (indistinguishability
under chosen plaintexts; Katz and Lindell 2020, section 3.4). It finds plain parts, reused nonces and keystreams, deterministic encryption
and telling lengths. It is no proof of secrecy: that rests on the scheme's assumptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PppmlError
from pppml_core.learning.stats import Interval, clopper_pearson

Numbers = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Result = Literal["told_apart", "no_better_than_guessing", "inconclusive"]
FEWEST = 200
_BLOCK = 16  # bytes of a block of AES, and more than the nonces in use
_FIRST, _SPREAD = 512, 1024  # bytes that are looked at one by one, at the start and beyond it
_COUNTED, _REMEMBERED = 1 << 18, 1 << 14  # bytes of a message that are counted, and whose blocks are remembered
_LAGS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
_LEAST_KEPT = 10


@dataclass(frozen=True)
class Game:
    """How a game ended.

    Args:
        result: ``told_apart``: the messages give their world away; ``no_better_than_guessing``: one half lies in the interval, and the key
            holder could tell; ``inconclusive``: nothing was found, and no key holder showed that there was anything to find.
        accuracy: share of the tested messages whose world was named right, with the exact interval of Clopper and Pearson.
        told_by: the statistic that did best while learning: ``length``, ``repeats``, ``byte counts`` or ``positions``.
        key_holder: the same with the key; None where none played.
    """

    result: Result
    accuracy: Interval
    told_by: str
    key_holder: Interval | None

    def words(self) -> str:
        """One sentence with the figures."""
        a = self.accuracy
        found = f"{round(a.estimate * a.n)} of {a.n} messages named right ({a.low:.1%} to {a.high:.1%} with {a.level:.1%} confidence)"
        holder = "no key holder played" if self.key_holder is None else f"with the key {self.key_holder.estimate:.1%}"
        start = {
            "told_apart": f"The messages give their contents away (by {self.told_by})",
            "no_better_than_guessing": "No better than guessing which of two contents was encrypted",
            "inconclusive": "Nothing was found, and nothing shows that there was anything to find",
        }[self.result]
        return f"{start}: {found}; {holder}."


def distinguishing_game(
    make: Callable[[int], bytes],
    trials: int = 1000,
    seed: int = 0,
    key_holder: Callable[[bytes], int] | None = None,
    confidence: float = 0.999,
) -> Game:
    """Play the game.

    Args:
        make: encrypts world 0 or world 1 as the run does, with fresh randomness, and returns all that the adversary sees.
        trials: messages, at least 200; half are learned from, half are tested.
        seed: of the coins that choose the worlds.
        key_holder: opens a message with the key and says which world it is: the positive control.
        confidence: two-sided, of the interval; encryption that hides everything is called ``told_apart`` with at most one less this.

    Each coin is fair and independent, so messages that do not depend on it are named right with probability one half exactly, whatever
    was learned.
    """
    if trials < FEWEST:
        raise PppmlError(f"{trials} messages are too few", place="distinguishing game", hint=f"make at least {FEWEST}")
    rng = np.random.default_rng(seed)
    worlds = rng.integers(0, 2, trials)
    messages = [bytes(make(int(w))) for w in worlds]
    half = trials // 2
    # The statistic is chosen on messages it did not learn from, and none of these are tested.
    chosen = max(_STATISTICS, key=lambda name: _right(_STATISTICS[name], messages[:half], worlds[:half], half // 2, rng).mean())
    right = _right(_STATISTICS[chosen], messages, worlds, half, rng)
    accuracy = clopper_pearson(int(right.sum()), len(right), confidence)
    holder = None
    if key_holder is not None:
        opened = [int(key_holder(m)) == w for m, w in zip(messages[half:], worlds[half:], strict=True)]
        holder = clopper_pearson(sum(opened), len(opened), confidence)
    result: Result = "told_apart"
    if accuracy.low <= 0.5 <= accuracy.high:
        result = "no_better_than_guessing" if holder is not None and holder.low > 0.5 else "inconclusive"
    return Game(result, accuracy, chosen, holder)


#: of learning messages, their worlds and further messages: a number for each of the latter, above 0 where it looks like world 1.
Statistic = Callable[[Sequence[bytes], npt.NDArray[np.int64], Sequence[bytes]], Numbers]


def _right(
    statistic: Statistic, messages: Sequence[bytes], worlds: npt.NDArray[np.int64], learned: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which of the messages after the learned ones are named right; where the statistic is silent, by a coin."""
    looks = statistic(messages[:learned], worlds[:learned], messages[learned:])
    named = np.where(looks == 0, rng.integers(0, 2, len(looks)), looks > 0)
    return np.asarray(named == worlds[learned:])


def _repeats(learn: Sequence[bytes], worlds: npt.NDArray[np.int64], test: Sequence[bytes]) -> Numbers:
    """Whole messages and aligned blocks that were seen before, in which world."""
    seen: tuple[set[bytes], set[bytes]] = (set(), set())
    for message, world in zip(learn, worlds, strict=True):
        seen[int(world)].update(_parts(message))
    # What occurs in both worlds, such as a header, cancels out.
    return np.array([float(len(parts & seen[1]) - len(parts & seen[0])) for parts in map(_parts, test)])


def _parts(message: bytes) -> set[bytes]:
    read = message[:_REMEMBERED]
    return {hashlib.sha256(message).digest()} | {read[i : i + _BLOCK] for i in range(0, len(read) - _BLOCK + 1, _BLOCK)}


def _linear(features: Callable[[bytes], Numbers | Bytes]) -> Statistic:
    """Nearest mean, each feature in units of its spread; of many features, those that differ beyond what chance makes of as many."""

    def statistic(learn: Sequence[bytes], worlds: npt.NDArray[np.int64], test: Sequence[bytes]) -> Numbers:
        x = np.stack([features(m) for m in learn]).astype(np.float32)
        sides = [x[worlds == w] for w in (0, 1)]
        if min(map(len, sides)) < 2:
            return np.zeros(len(test))
        zero, one = (side.mean(axis=0, dtype=np.float64) for side in sides)
        # Features that are constant within each world get a small spread, so that they count most.
        spread = np.sqrt(np.mean([side.var(axis=0, dtype=np.float64) for side in sides], axis=0)) + 1e-6 + 1e-3 * np.abs(one - zero)
        apart = np.abs(one - zero) / spread * np.sqrt(len(sides[0]) * len(sides[1]) / len(learn))
        limit = min(float(np.sqrt(2.0 * np.log(max(2, len(apart))))), float(np.sort(apart)[-min(_LEAST_KEPT, len(apart))]))
        weight = np.where((apart >= limit) & (apart > 0), (one - zero) / spread**2, 0.0)
        return np.array([float(weight @ (np.asarray(features(m), np.float64) - (zero + one) / 2.0)) for m in test])

    return statistic


def _length(message: bytes) -> Numbers:
    return np.array([float(len(message))])


def _byte_counts(message: bytes) -> Numbers:
    """Share of each byte value, of bytes that equal the one some places before, and of blocks that are repeated within the message."""
    x = np.frombuffer(message[:_COUNTED], np.uint8)
    if len(x) == 0:
        return np.zeros(256 + len(_LAGS) + 1)
    equal = [float((x[lag:] == x[:-lag]).mean()) if len(x) > lag else 0.0 for lag in _LAGS]
    blocks = x[: len(x) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    repeated = 1.0 - len(np.unique(blocks, axis=0)) / len(blocks) if len(blocks) else 0.0
    return np.concatenate([np.bincount(x, minlength=256) / len(x), equal, [repeated]])


def _positions(message: bytes) -> Bytes:
    """The bits of the first bytes, and of bytes evenly spread over the rest: a fixed keystream only turns some of them around."""
    x = np.frombuffer(message, np.uint8)
    first, rest = x[:_FIRST], x[_FIRST:]
    spread = rest[np.linspace(0, len(rest) - 1, _SPREAD).astype(np.int64)] if len(rest) else rest
    bits = np.unpackbits(np.concatenate([first, spread]))
    return np.concatenate([bits, np.zeros((_FIRST + _SPREAD) * 8 - len(bits), np.uint8)])


_STATISTICS: dict[str, Statistic] = {
    "length": _linear(_length),
    "repeats": _repeats,
    "byte counts": _linear(_byte_counts),
    "positions": _linear(_positions),
}

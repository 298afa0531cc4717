"""The bytes test: do the bytes a coalition sees tell two worlds apart, in which two sites have swapped their inputs?

The exact knowledge test (:mod:`.knowledge`) shows what the algebra gives away; this one looks at the bytes that really travel: lengths,
headers, masks that are not uniform, an encoding that shows through. The sum is the same in both worlds, so an honest view is a fair coin.

The classifier, stated so that a result means something: features are the length of the view, every bit of it, and every byte against the
middle between its two means. On one half of the trials each feature's accuracy is measured; the eight best, weighted by the log odds of
their accuracy, vote on the other half, and the share of right votes there is the result. It finds any single bit or byte that depends on
the world, however many others do not. What hides in a difference of two messages must be computed by whoever makes the view.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]

VOTES = 8
#: bytes looked at in one step, to bound the memory.
STEP = 2048


def distinguish(make_view: Callable[[int, int], bytes], trials: int = 1000, seed: int = 0) -> float:
    """Accuracy, in [0, 1], with which views of world 0 and of world 1 are told apart.

    Args:
        make_view: ``(world, trial) -> bytes``: what the coalition sees in one trial. Fix the two inputs over all trials, draw everything
            else anew. Append what the coalition can compute (differences of vectors, decrypted values): features are single bits and bytes.
        trials: at least 40; each world gets half of them, in an order drawn from ``seed``. With 1,000 trials a view that says nothing
            gives 0.5 +- 0.022 (one standard deviation): assert 0.42 to 0.58 of one of two calls (each is outside with probability 3e-4),
            and at least 0.99 for the control.
        seed: of the order.

    """
    if trials < 40:
        raise ValueError(f"{trials} trials say nothing; at least 40 are needed")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(trials) % 2
    views = [_with_length(make_view(int(world), trial)) for trial, world in enumerate(order)]
    longest = max(map(len, views))
    data = np.frombuffer(b"".join(view.ljust(longest, b"\0") for view in views), np.uint8).reshape(trials, longest)
    truth, half = order.astype(bool), trials // 2
    votes, odds = [], []
    for features in (_features(data[:, start : start + STEP], truth, half) for start in range(0, longest, STEP)):
        right = np.mean(features[:half] == truth[:half, None], axis=0)
        best = np.argsort(-np.abs(right - 0.5), kind="stable")[:VOTES]
        votes.append(features[:, best])
        odds += [_log_odds(share, half) for share in right[best]]
    chosen = np.argsort(-np.abs(odds), kind="stable")[:VOTES]
    voted = np.hstack(votes)[half:, chosen]
    score = (np.where(voted, 1.0, -1.0) * np.array(odds)[chosen]).sum(axis=1)
    return float(np.mean((score > 0) == truth[half:]))


def _with_length(view: bytes) -> bytes:
    return len(view).to_bytes(8, "little") + bytes(view)


def _features(data: npt.NDArray[np.uint8], truth: Bits, half: int) -> Bits:
    """Every bit, and every byte against the middle between its means in the two worlds (of the training half)."""
    means = [data[:half][truth[:half] == world].mean(axis=0) for world in (False, True)]
    return np.hstack([np.unpackbits(data, axis=1).astype(bool), data > (means[0] + means[1]) / 2])


def _log_odds(share: float, count: int) -> float:
    """Of a vote that was right in this share of ``count`` trials; negative where the opposite was right."""
    right = share * count
    return math.log((right + 0.5) / (count - right + 0.5))

"""Two sources of randomness that never mix.

*Learning* randomness (initial weights, shuffles, augmentation, rounding without differential privacy) comes from named seeds: the
same name gives the same stream in any order, on any number of workers, on any engine. *Privacy* randomness (keys, masks, noise,
sampling an accountant relies on) comes from the operating system.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Name = str | int


class Seeds:
    """A tree of named learning seeds under one root seed.

    >>> Seeds(7).integer("round", 3, "site", "a") == Seeds(7).integer("round", 3, "site", "a")
    True
    """

    def __init__(self, root: int) -> None:
        self.root = int(root)

    def integer(self, *names: Name) -> int:
        """A 63-bit non-negative seed for this name: SHA-256 over the root and the typed, length-prefixed parts of the name."""
        digest = hashlib.sha256(f"pppml-seed-v1:{self.root}".encode())
        for name in names:
            # numpy's integers are integers here: a name must not depend on where its number came from.
            part = (f"str:{name}" if isinstance(name, str) else f"int:{operator.index(name)}").encode()
            digest.update(len(part).to_bytes(4, "big") + part)
        return int.from_bytes(digest.digest()[:8], "big") >> 1

    def generator(self, *names: Name) -> np.random.Generator:
        """A numpy generator (PCG64) of its own for this name."""
        import numpy as np

        return np.random.Generator(np.random.PCG64(self.integer(*names)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's and numpy's global generators inside the block and put their states back after it.

    Networks draw dropout from torch's global generator, and some libraries use numpy's; this is the one place that sets them, entered
    for each (site, round, step), so nothing that ran before can change a result.
    """
    import numpy as np
    import torch

    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    reseed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)  # noqa: NPY002


def reseed(seed: int) -> None:
    """Seed torch's and numpy's global generators; only inside a :func:`seeded` block, which puts them back."""
    import numpy as np
    import torch

    # The generator itself: torch.manual_seed asks every kind of device in turn, which costs more than a small network's step.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


def entropy(length: int) -> bytes:
    """``length`` bytes from the operating system, for keys, masks, noise and secret sampling."""
    return os.urandom(length)


class Secret:
    """Bytes that must not be printed, compared by accident, pickled or logged. ``wipe`` overwrites them."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = bytearray(data)

    def reveal(self) -> bytes:
        """The bytes themselves. Call it where they are used and do not keep the result."""
        return bytes(self._data)

    def wipe(self) -> None:
        """Overwrite with zeros and empty. (Copies made by ``reveal`` are the caller's to drop.)"""
        self._data[:] = bytes(len(self._data))
        self._data.clear()

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"Secret({len(self._data)} bytes)"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is never pickled")

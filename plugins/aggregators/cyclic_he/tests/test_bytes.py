"""The bytes test: two worlds in which two sites have swapped their inputs look alike to every coalition up to the bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from pppml_core.testing.worlds import distinguish
from pppml_core.wire.messages import SERVER
from pppml_cyclic_he import adverts, server, site
from pppml_cyclic_he.exposure import Coalition

TRIALS = 1000
#: the ring is a, b, c; the bound is one site with the server.
SITES = ("a", "b", "c")
INPUTS = {site: np.full(2, value, np.int32) for site, value in zip(SITES, (5, 30_000, -20_000), strict=True)}


def leaves(body: Any) -> Iterator[bytes]:
    """All bytes in a message, each string of them once in a view. (What else there is, names, is the same in all sessions.)"""
    if isinstance(body, bytes):
        yield body
    for value in body.values() if isinstance(body, Mapping) else body if isinstance(body, list) else ():
        yield from leaves(value)


@pytest.fixture
def sessions(cyclic: Any, memory: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``sessions(world, trial)``: one of the sessions that all coalitions look at; in world 1, b and c have swapped.

    All are honest, so nothing is refused in them, and signatures, which are sent as ever, need not be checked a hundred thousand times.
    """
    for module, name in ((adverts, "check"), (adverts, "verify"), (site, "check_chain"), (site, "verify"), (server, "verify")):
        monkeypatch.setattr(module, name, lambda *given: None)

    @cache
    def session(world: int, trial: int) -> Any:
        given = {**INPUTS, **({"b": INPUTS["c"], "c": INPUTS["b"]} if world else {})}
        return cyclic.run(SITES, rings=1, length=2, contributions={name: v.copy() for name, v in given.items()})

    return session


def test_swapped_inputs_look_alike(cyclic: Any, memory: Any, sessions: Any) -> None:
    """All bytes through the coalition's hands, all it decrypts, and the difference of any two of these vectors."""
    setting = cyclic.harness(SITES, rings=1, length=2).session().setting

    def view(*coalition: str, first: int = 0) -> Any:
        def make(world: int, trial: int) -> bytes:
            seen = memory.view(sessions(world, first + trial), coalition, 1)
            held = Coalition(setting, coalition, seen["messages"], seen["states"])
            vectors = [cut for _, cut in sorted(held.cuts(0).items())]
            vectors += [exposure.value.astype(np.uint64) for exposure in held.exposures()]
            differences = [one - other for i, one in enumerate(vectors) for other in vectors[:i]]
            read = b"".join(vector.tobytes() for vector in (*vectors, *(d % np.uint64(setting.modulus) for d in differences)))
            return read + b"".join(dict.fromkeys(leaf for m in seen["messages"] for leaf in leaves(m.body)))

        return make

    # 500 fair coins are outside of this with probability 2.8e-4, twice (over other sessions) with 8e-8.
    accuracies = (distinguish(view(SERVER, "a", first=first), TRIALS) for first in (0, TRIALS))
    assert any(0.42 <= accuracy <= 0.58 for accuracy in accuracies), "the server and the key holder"
    assert distinguish(view(SERVER, "a", "b"), TRIALS) >= 0.99, "the control: one site beyond the bound"

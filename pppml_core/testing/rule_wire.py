"""What of a learning rule's model leaves a site: a real run of two sites on the tiny task, with every frame kept and read."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.api import Experiment
from pppml_core.federation.store import SiteStore
from pppml_core.registry import Registry
from pppml_core.testing.rule_suite import RuleSuite
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import SERVER
from pppml_core.wire.transcript import read_payload, read_transcript

Vector = npt.NDArray[np.float64]
ROUNDS = 2
#: numbers of a longer piece are found at any scale, those of a shorter one as they are.
PIECE = 16


class RuleOnTheWire(RuleSuite):
    """The part of :class:`~pppml_core.testing.PersonalizationSuite` about what is sent."""

    def test_personal_parameters_never_leave(self) -> None:
        """If this fails: a tensor that ``shared`` keeps at the site, or its numbers in another's place, is in a message of the site.

        Found are the values of personal tensors after each round and their change in it: whole or in pieces of 16 numbers at any scale.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            made = Experiment(
                task={"use": "tiny", "sites": 2},
                model=self.network(),
                personalization=self.make(),
                run={"rounds": ROUNDS, "transcript": "payloads"},
                training={"device": "cpu"},
                encoding={"use": "float"},  # contributions as they are: no number is cut off at a range
                registry=Registry.only(),
            )
            made.run(path, reporters=False, report=False)
            shared, initial = set(self.shared()), {n: t.numpy() for n, t in self.initial().items()}
            contribution = json.loads((path / "manifest.json").read_text())["contribution"] if shared else []
            tensors = [entry for entry in contribution if entry["role"] in ("parameter", "buffer")]
            assert ([e["name"] for e in tensors] and not shared) or {e["name"] for e in tensors} == shared

            personal = {
                site: [SiteStore(path / "sites" / site).state(r)["personal"] for r in range(ROUNDS + 1)]  # type: ignore[index]
                for site in ("site_1", "site_2")
            }
            kept = set(initial) - shared
            for held in personal.values():
                assert all(set(state) == kept for state in held)
            for hop in read_transcript(path):
                frame = read_payload(path, hop.sha256)
                message = decode_message(frame)
                place = f"round {hop.round}, {hop.stage}, from {hop.origin}"
                named = kept & {key for names, _ in _leaves(message.body) for key in names}
                assert not named, f"{place}: {', '.join(sorted(named))}"
                if hop.origin == SERVER:
                    continue
                sent = [_flat(array) for _, array in _leaves(message.body) if array.size > 1]
                if hop.stage == "contribute":
                    sent += [_unweighted(vector, contribution) for vector in sent]
                for name, numbers in _own(personal[hop.origin], initial):
                    found = numbers.tobytes() in frame or any(_holds(vector, _flat(numbers)) for vector in sent)
                    assert not found, f"{place}: numbers of {name}"


def _leaves(body: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], npt.NDArray[Any]]]:
    """Everything in a body as arrays, with the keys that lead to it."""
    if isinstance(body, Mapping):
        for key, value in body.items():
            yield from _leaves(value, (*names, key))
    elif isinstance(body, list | tuple):
        for value in body:
            yield from _leaves(value, names)
    else:
        yield names, np.asarray(body)


def _flat(array: npt.NDArray[Any]) -> Vector:
    return array.astype(np.float64).ravel() if array.dtype.kind in "biuf" else np.zeros(0)


def _unweighted(vector: Vector, contribution: list[dict[str, Any]]) -> Vector:
    """A contribution before it was multiplied by the site's weight, which is a coordinate itself."""
    sizes = [int(np.prod(entry["shape"], dtype=int)) for entry in contribution]
    (place,) = [sum(sizes[:i]) for i, entry in enumerate(contribution) if entry["role"] == "weight"]
    return np.asarray(vector / vector[place])


def _own(held: list[Mapping[str, npt.NDArray[Any]]], initial: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """What only the site knows: its personal tensors after each round, and their changes; initial values are public."""
    for before, after in itertools.pairwise(held):
        for name, array in after.items():
            for numbers in (array, array - before[name]):
                if array.size > 1 and np.ptp(numbers) > 0 and not np.array_equal(numbers, initial[name]):
                    yield name, numbers


def _holds(vector: Vector, numbers: Vector) -> bool:
    """Whether a stretch of ``vector`` is a piece of ``numbers``."""
    pieces = [numbers[i : i + PIECE] for i in range(0, len(numbers), PIECE)]
    return any(_at(vector, piece) for piece in pieces if len(piece) > 1 and np.ptp(piece) > 0)


def _at(vector: Vector, piece: Vector) -> bool:
    if len(vector) < len(piece):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(vector, len(piece))
    if len(piece) < PIECE:
        return bool((np.abs(windows - piece).max(axis=1) <= 1e-5 * np.abs(piece).max()).any())
    lengths = np.linalg.norm(windows, axis=1) * np.linalg.norm(piece)
    return bool((np.abs(windows @ piece) > (1 - 1e-6) * lengths)[lengths > 0].any())

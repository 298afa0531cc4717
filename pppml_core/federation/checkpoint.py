"""Server checkpoints: whole or absent, the last two kept, damaged ones passed over with a warning. And sums not yet in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pppml_core.errors import CheckpointError, WireError
from pppml_core.federation.files import write_atomic
from pppml_core.interfaces.aggregation import Sum
from pppml_core.wire.codec import decode, encode

_CHECKPOINT = re.compile(r"round-([0-9]{6,9})\.checkpoint")
_SUM = re.compile(r"sum-([0-9]{6,9})-[a-z-]+")
_BEST = re.compile(r"best-([0-9]{6,9})\.weights")


def _path(folder: Path, round: int) -> Path:
    return folder / f"round-{round:06d}.checkpoint"


def save(folder: Path, round: int, state: Mapping[str, Any]) -> None:
    """Write the checkpoint after a round, then drop all but this and the one before."""
    write_atomic(_path(folder, round), encode({"round": round, "state": state}))
    for number, path in _held(folder):
        if number < round - 1:
            path.unlink(missing_ok=True)


def save_best(folder: Path, round: int, weights: Mapping[str, Any]) -> None:
    """Write the weights of a round that may be selected; call before the checkpoint that names it."""
    write_atomic(folder / f"best-{round:06d}.weights", encode(weights))


def load_best(folder: Path, round: int) -> Any:
    """The inverse of :func:`save_best`. Raises CheckpointError."""
    path = folder / f"best-{round:06d}.weights"
    try:
        return decode(path.read_bytes())
    except (OSError, WireError) as error:
        raise CheckpointError(f"the best round's weights cannot be read: {error}", place=str(path)) from error


def drop_best(folder: Path, keep: Sequence[int]) -> None:
    """Remove weights of rounds that no checkpoint names any more."""
    for path in folder.glob("best-*.weights"):
        found = _BEST.fullmatch(path.name)
        if found and int(found[1]) not in keep:
            path.unlink(missing_ok=True)


def save_sum(folder: Path, round: int, which: str, key: bytes, summed: Sum) -> None:
    """Write a sum that no site will give a second time, before anything is done with it.

    Args:
        folder: of the checkpoints.
        round: counted from 1.
        which: letters and ``-``: the kind of sum.
        key: 32 bytes over all that the sum depends on.
        summed: integers, or floating-point numbers.
    """
    total = summed.total
    if total.dtype.kind == "i" and total.size and max(abs(int(total.min())), abs(int(total.max()))) < 2**31:
        total = total.astype(np.int32)
    write_atomic(_sum(folder, round, which), encode({"key": key, "total": total, "survivors": list(summed.survivors)}))


def load_sum(folder: Path, round: int, which: str, key: bytes) -> Sum | None:
    """The sum kept under exactly this key; None where there is none, or a damaged one."""
    path = _sum(folder, round, which)
    if not path.exists():
        return None
    try:
        held = decode(path.read_bytes())
        if held["key"] != key:
            return None
        total = held["total"]
        return Sum(total.astype(np.int64) if total.dtype.kind == "i" else total, tuple(held["survivors"]))
    except (OSError, WireError, KeyError, TypeError, AttributeError):
        return None


def drop_sums(folder: Path, before: int | None = None) -> None:
    """Remove sums of earlier rounds, or all. Those of the newest checkpoint's round stay, in case that one turns out to be damaged."""
    for path in folder.glob("sum-*"):
        found = _SUM.fullmatch(path.name)
        if found and (before is None or int(found[1]) < before):
            path.unlink(missing_ok=True)


def _sum(folder: Path, round: int, which: str) -> Path:
    return folder / f"sum-{round:06d}-{which}"


def load(folder: Path, among: Sequence[int] | None = None) -> tuple[int, Mapping[str, Any], list[str]] | None:
    """The newest readable checkpoint, restricted to the rounds ``among``; with warnings about damaged ones.

    None where there is no checkpoint at all. Raises CheckpointError where there are some and none can be read.
    """
    warnings: list[str] = []
    held = [(n, p) for n, p in sorted(_held(folder), reverse=True) if among is None or n in among]
    for number, path in held:
        try:
            found = decode(path.read_bytes())
            if found["round"] != number:
                raise WireError("it belongs to another round")
            return number, found["state"], warnings
        except (OSError, WireError, KeyError, TypeError) as error:
            warnings.append(f"checkpoint {path.name} cannot be read and is passed over: {error}")
    if held:
        raise CheckpointError("no checkpoint can be read: " + "; ".join(warnings), place=str(folder), hint="start a new run")
    return None


def rounds(folder: Path) -> list[int]:
    """Rounds that have a checkpoint file, newest last."""
    return sorted(n for n, _ in _held(folder))


def _held(folder: Path) -> list[tuple[int, Path]]:
    return [(int(found[1]), p) for p in folder.glob("round-*.checkpoint") if (found := _CHECKPOINT.fullmatch(p.name))]

"""The shared weights that a round of a run began with, from the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pppml_core.errors import ConfigError
from pppml_core.evidence.recording import Recording
from pppml_core.federation.assembly import Assembly
from pppml_core.interfaces.attack import Arrays
from pppml_core.learning.arrays import to_numpy


def weights_before(folder: Path, parts: Assembly, round: int, rounds: int) -> Arrays:
    """Of round ``round``, 1 to ``rounds + 1``: the initial ones, those that were sent to the sites, or the run's result.

    Raises ConfigError where the run kept no messages and neither of the ends is asked for.
    """
    if round == 1:
        return to_numpy(parts.initial_weights)
    if round == rounds + 1:
        return _final(folder, parts)
    if (folder / "transcripts" / "payloads").is_dir() and (found := Recording(folder).weights_before(round)):
        return {name: np.asarray(array) for name, array in found.items()}
    text = f"this run did not keep the model that round {round} began with"
    hint = f"attack round 1 or {rounds + 1} (after the last), or run with `run.transcript: payloads`"
    raise ConfigError(text, place="round", hint=hint)


def _final(folder: Path, parts: Assembly) -> Arrays:
    from safetensors.numpy import load_file

    path = folder / "model.safetensors"
    if not path.exists():
        raise ConfigError("the run has not written its model yet", place=str(path), hint=f"pppml run ... --resume {folder}")
    held: dict[str, Any] = load_file(path)
    return {t.name: held[t.name] for t in parts.shared}

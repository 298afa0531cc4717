"""What an attack is held against: the same run with its defence off, where it must succeed, and a view with nothing true in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pppml_core.config import resolve, to_plain
from pppml_core.federation.assembly import Assembly
from pppml_core.interfaces.attack import Arrays, Seen


def undefended(parts: Assembly) -> Assembly:
    """The run with its defence off: no privacy mechanism, sums in the clear."""
    plain = {**to_plain(parts.config), "privacy": {"use": "none"}, "aggregator": {"use": "plain"}, "attacks": []}
    config = resolve(plain, registry=parts.registry)
    registry = parts.registry
    out = Assembly(
        config,
        registry,
        parts.task,
        parts.factory,
        parts.personalization,
        registry.build("privacy", config.privacy, {}),
        registry.build("aggregator", config.aggregator, {}),
    )
    # One network serves both: whoever uses it loads weights first.
    out.__dict__["model"], out.initial_state = parts.model, parts.initial_state
    out.__dict__["_data"] = parts._data
    return out


def randomized(seen: Seen, generator: np.random.Generator) -> Seen:
    """The same view with nothing true of the round in it: every decoded update, and what the two models differ by, is replaced by
    a Gaussian one of the same norm, tensor by tensor; messages and secrets are left out.
    """

    def like(update: Arrays) -> Arrays:
        out = {}
        for name, tensor in update.items():
            drawn = generator.standard_normal(np.shape(tensor))
            out[name] = (drawn * (float(np.linalg.norm(tensor)) / (float(np.linalg.norm(drawn)) or 1.0))).astype(np.float32)
        return out

    sights = tuple(replace(s, update=like(s.update)) for s in seen.sights)
    moved = like({n: np.asarray(a, np.float64) - np.asarray(seen.weights[n]) for n, a in seen.after.items()}) if seen.weights else {}
    after = {n: (np.asarray(seen.weights[n]) + d).astype(np.asarray(seen.weights[n]).dtype) for n, d in moved.items()}
    return replace(seen, sights=sights, after=after, messages=(), secrets={})

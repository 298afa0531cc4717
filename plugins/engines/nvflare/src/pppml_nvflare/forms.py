"""The forms of what travels in a Collab call and over the bridge: a walk as bytes."""

from __future__ import annotations

from typing import Any

from pppml_core.errors import WireError
from pppml_core.interfaces.engine import Loss, Step, Walk
from pppml_core.wire.codec import decode, encode

_FORM = {"at": str, "reply": bytes, "reason": str, "handed": bool, "steps": list, "bridged": list, "unhanded": bytes}


def write_walk(walk: Walk) -> bytes:
    """A walk, or the answer of a single site, as bytes."""
    lost = walk.reply if isinstance(walk.reply, Loss) else None
    return encode(
        {
            "at": walk.at,
            "reply": b"" if isinstance(walk.reply, Loss) else walk.reply,
            "reason": "" if lost is None else lost.reason or "no reason given",
            "handed": lost is None or lost.handed,
            "steps": [[step.sender, step.recipient, step.size, step.sha256] for step in walk.steps],
            "bridged": list(walk.bridged),
            "unhanded": walk.unhanded or b"",
        }
    )


def read_walk(data: bytes) -> Walk:
    """The walk in such bytes. Raises WireError for anything else."""
    told = decode(data)
    if not isinstance(told, dict) or set(told) != set(_FORM) or any(type(told[name]) is not form for name, form in _FORM.items()):
        raise WireError("this is no answer of a site", place="answer")
    if not all(type(site) is str for site in told["bridged"]):
        raise WireError("sites must be names", place="answer")
    reply = Loss(told["reason"][:512], told["handed"]) if told["reason"] else told["reply"]
    return Walk(told["at"], reply, tuple(_step(one) for one in told["steps"]), tuple(told["bridged"]), told["unhanded"] or None)


def _step(told: Any) -> Step:
    fits = isinstance(told, list) and [type(one) for one in told] == [str, str, int, str]
    if not fits or not 0 <= told[2] < 2**40 or len(told[3]) != 64 or not set(told[3]) <= set("0123456789abcdef"):
        raise WireError("a step must hold sender, recipient, size and SHA-256", place="answer")
    return Step(*told)

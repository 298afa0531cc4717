"""What the header of a message may say: types and ranges, the same for who sends and who receives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pppml_core.errors import WireError

_NAME = {
    "kind": re.compile(r"[a-z][a-z0-9_-]{0,31}"),
    "stage": re.compile(r"[A-Za-z0-9_.:/-]{0,64}"),
    "sender": re.compile(r"[a-z0-9_]{1,64}"),
    "recipient": re.compile(r"[a-z0-9_]{1,64}"),
}
_NUMBER = {"round": range(2**31), "attempt": range(1, 2**31)}
KEYS = frozenset({"run", "body", *_NAME, *_NUMBER})


def check_header(fields: Mapping[str, Any]) -> None:
    """Raise WireError, naming the field, unless every field is what a message may hold."""
    if not isinstance(fields["run"], bytes) or len(fields["run"]) != 16:
        raise WireError("the run's name must be 16 bytes", place="message.run")
    for key, allowed in _NUMBER.items():
        if type(fields[key]) is not int or fields[key] not in allowed:
            raise WireError(f"{fields[key]!r} is not a whole number from {allowed.start}", place=f"message.{key}")
    for key, pattern in _NAME.items():
        if not isinstance(fields[key], str) or not pattern.fullmatch(fields[key]):
            raise WireError(f"{fields[key]!r:.80} does not match {pattern.pattern}", place=f"message.{key}")
    if fields["sender"] == fields["recipient"]:
        raise WireError(f"{fields['sender']!r} sends to itself", place="message.recipient")
    if not isinstance(fields["body"], Mapping):
        raise WireError(f"the body must be a map, not {type(fields['body']).__name__}", place="message.body")

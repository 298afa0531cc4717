"""A site's part in one attempt of one secure sum: plain-data state, one step a message, each stage answered once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pppml_core.errors import PolicyRefusal, WireError
from pppml_core.federation.files import write_atomic
from pppml_core.interfaces.aggregation import Session, SiteContext, State
from pppml_core.wire.codec import decode, encode, encode_message
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import SERVER, Message


class SessionSide:
    """Steps a session at one site.

    A duplicate of a request gets the same bytes; another request for a stage already answered is refused. The reply is checked
    against the manifest before it leaves.

    Args:
        spool: folder where large replies wait for a possible re-send, so that they do not fill the memory; None: in memory.
        remember: for experiments only: called with what the state holds anew, after each message; None: nothing is remembered.
    """

    def __init__(
        self, session: Session, ctx: SiteContext, spool: Path | None = None, remember: Callable[[State], None] | None = None
    ) -> None:
        self._session, self._ctx, self._spool = session, ctx, spool
        self._manifest = Manifest(session.fields)
        self._state: State = session.open(ctx)
        self._remember, self._noted = remember, dict[str, Any]()
        self._answered: dict[str, tuple[bytes, bytes]] = {}

    @property
    def relays(self) -> tuple[str, ...]:
        """Stages whose messages come from another site, and go on to one."""
        return self._session.relays

    def answer(self, message: Message, frame: bytes) -> bytes:
        """The reply frame to a request."""
        digest = hashlib.sha256(frame).digest()
        if message.stage in self._answered:
            asked, reply = self._answered[message.stage]
            if asked != digest:
                raise PolicyRefusal(f"stage {message.stage!r} was already answered for another request", place=self._ctx.site)
            if not self._session.repeatable:
                return reply or self._spooled(message.stage).read_bytes()
        state, body = self._session.handle(self._state, message, self._ctx)
        self._manifest.check(message.stage, body)
        reply = encode_message(Message(message.run, message.round, message.attempt, "reply", message.stage, self._ctx.site, SERVER, body))
        for held in (self._state, state):
            self._note(held)
        self._state = state
        if self._session.repeatable:
            self._answered[message.stage] = (digest, b"")
            return reply
        large = self._spool is not None and len(reply) > 65_536
        if large:
            write_atomic(self._spooled(message.stage), reply, sync=False)
        self._answered[message.stage] = (digest, b"" if large else reply)
        return reply

    def _note(self, state: State) -> None:
        """Have remembered what was not before. Texts cannot have changed where they are; anything else is noted again."""
        if self._remember is not None:
            same = {name for name, value in state.items() if isinstance(value, bytes | str) and self._noted.get(name) is value}
            self._remember({name: value for name, value in state.items() if name not in same})
            self._noted |= state

    def forget(self) -> None:
        """Drop the state, and with it all secrets; what was answered is answered again with the same bytes."""
        self._state = {}

    def _spooled(self, stage: str) -> Path:
        assert self._spool is not None
        return self._spool / f"reply-{hashlib.sha256(stage.encode()).hexdigest()[:16]}"

    def freeze(self) -> bytes:
        """Everything that must survive when an engine recreates the site."""
        return encode({"state": self._state, "answered": {s: [d, r] for s, (d, r) in self._answered.items()}})

    def thaw(self, data: bytes) -> None:
        """The inverse of :meth:`freeze`."""
        held: Mapping[str, Any] = decode(data)
        if set(held) != {"state", "answered"}:
            raise WireError("not a frozen session", place=self._ctx.site)
        self._state = held["state"]
        self._answered = {s: (d, r) for s, (d, r) in held["answered"].items()}

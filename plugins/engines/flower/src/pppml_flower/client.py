"""The ClientApp: what runs at a site for each message. It finds the home of its node, and lets the keeper there answer.

Nothing of a site is in Flower's hands: no ``context.state``, and no words about an error but that there was one. That is in the audit log
of the home, as every answer; its keeper writes it, and this process only where the keeper goes in the middle of an answer. A home without
one is not touched.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from pppml_core.errors import ConfigError, WireError
from pppml_flower.grid import ACTION, pack, unpack
from pppml_flower.keeper import FAILED, LOG, NONE, UNKEPT, Unkept, ask, note_lost

app = ClientApp()


@app.train(ACTION)
def answer(message: Message, context: Context) -> Message:
    """The reply of the home at this node to one message."""
    home: Path | None = None
    try:
        home = _home(context)
        kind, data = ask(home, *_asked(message), context.node_id)
        return _none(message, FAILED) if kind == NONE else Message(pack(kind, data), reply_to=message)
    except Unkept:
        LOG.exception("a message was not handled")
        return _none(message, UNKEPT)
    except Exception:
        # Reasons name folders of this site. They are for its people.
        LOG.exception("a message could not be handled")
        if home is not None:
            from pppml_core.engines.words import Words

            note_lost(home, Words())
        return _none(message, FAILED)


def _none(message: Message, reason: str) -> Message:
    return Message(Error(0, reason), reply_to=message)


def _asked(message: Message) -> tuple[str, bytes]:
    """Kind and bytes; nothing where it has another form: its keeper refuses that, and counts it."""
    try:
        return unpack(message.content)
    except WireError:
        return "", b""


def _home(context: Context) -> Path:
    given = context.node_config.get("home")
    if not isinstance(given, str):
        raise ConfigError("this node has no home", place="node config", hint="start it with `pppml site run`")
    return Path(given)

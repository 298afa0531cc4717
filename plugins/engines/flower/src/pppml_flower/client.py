"""The ClientApp: what runs at a site for each message. It finds the home of its node, and lets the resident there answer.

Nothing of a site is in Flower's hands: no ``context.state``, and no words about an error but that there was one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from pppml_core.errors import ConfigError, WireError
from pppml_flower.introduction import introduce
from pppml_flower.keeper import ask
from pppml_flower.records import ACTION, CHALLENGE, FRAME, INTRODUCTION, pack, unpack

_FAILED = "the site could not handle the message; its own log says why"

app = ClientApp()


@app.train(ACTION)
def answer(message: Message, context: Context) -> Message:
    """The reply of the home at this node to one message."""
    try:
        home = _home(context)
        kind, data = unpack(message.content)
        if kind == CHALLENGE:
            return Message(pack(INTRODUCTION, introduce(home, data, context.node_id)), reply_to=message)
        if kind != FRAME:
            raise WireError("this is nothing a site is asked", place="Flower message")
        return Message(pack(FRAME, _reply(home, data)), reply_to=message)
    except Exception:
        # Reasons name folders of this site. They are for its people.
        logging.getLogger("pppml.flower").exception("a message could not be handled")
        return Message(Error(0, _FAILED), reply_to=message)


def _home(context: Context) -> Path:
    given = context.node_config.get("home")
    if not isinstance(given, str):
        raise ConfigError("this node has no home", place="node config", hint="start it with `pppml site run`, or --node-config 'home=\"PATH\"'")
    return Path(given)


def _reply(home: Path, frame: bytes) -> bytes:
    if (reply := ask(home, frame)) is not None:
        return reply
    from pppml_core.federation.resident import Resident

    return Resident(home, recreated=True).receive(frame)

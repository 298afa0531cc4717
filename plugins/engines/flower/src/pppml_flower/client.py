"""The ClientApp: what runs at a site for each message. It finds the home of its node, and lets the resident there answer.

Nothing of a site is in Flower's hands: no ``context.state``, and no words about an error but that there was one.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from pppml_core.errors import ConfigError
from pppml_flower.grid import ACTION, pack, unpack
from pppml_flower.keeper import LOG, answer_of, ask

_FAILED = "the site could not handle the message; its own log says why"

app = ClientApp()


@app.train(ACTION)
def answer(message: Message, context: Context) -> Message:
    """The reply of the home at this node to one message."""
    try:
        home, asked = _home(context), unpack(message.content)
        kind, data = ask(home, *asked, context.node_id) or answer_of(home, *asked, context.node_id)
        return Message(pack(kind, data), reply_to=message)
    except Exception:
        # Reasons name folders of this site. They are for its people.
        LOG.exception("a message could not be handled")
        return Message(Error(0, _FAILED), reply_to=message)


def _home(context: Context) -> Path:
    given = context.node_config.get("home")
    if not isinstance(given, str):
        raise ConfigError(
            "this node has no home", place="node config", hint="start it with `pppml site run`, or --node-config 'home=\"PATH\"'"
        )
    return Path(given)

"""The ClientApp: what runs at a site for each message. It finds the home of its node, and lets the resident there answer.

Nothing of a site is in Flower's hands: no ``context.state``, and no words about an error but that there was one. That is in the audit log
of the home, as every answer.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from pppml_core.errors import ConfigError, PppmlError
from pppml_flower.grid import ACTION, pack, unpack
from pppml_flower.keeper import LOG, answer_of, ask

_FAILED = "the site could not handle the message; its own log says why"

app = ClientApp()


@app.train(ACTION)
def answer(message: Message, context: Context) -> Message:
    """The reply of the home at this node to one message."""
    home: Path | None = None
    try:
        home, asked = _home(context), unpack(message.content)
        kind, data = ask(home, *asked, context.node_id) or answer_of(home, *asked, context.node_id)
        return Message(pack(kind, data), reply_to=message)
    except Exception:
        # Reasons name folders of this site. They are for its people.
        LOG.exception("a message could not be handled")
        if home is not None:
            _note(home)
        return Message(Error(0, _FAILED), reply_to=message)


def _note(home: Path) -> None:
    """Write down that the answer is none. Flower answers with an error of its own where there is no answer, so it leaves in any case."""
    from pppml_core.engines.words import LOSS, Words

    try:
        Words().note(home, LOSS, _FAILED.encode(), _FAILED)
    except (PppmlError, OSError):
        LOG.exception("the audit log cannot take that this site was lost")


def _home(context: Context) -> Path:
    given = context.node_config.get("home")
    if not isinstance(given, str):
        raise ConfigError(
            "this node has no home", place="node config", hint="start it with `pppml site run`, or --node-config 'home=\"PATH\"'"
        )
    return Path(given)

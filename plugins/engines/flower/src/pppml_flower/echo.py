"""A ClientApp that does nothing, and loads nothing but Flower: what :mod:`.empty` measures as Flower's own."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:
    """The content again."""
    return Message(message.content, reply_to=message)

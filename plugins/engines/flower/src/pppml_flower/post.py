"""The post office: messages to nodes and the answers to them. Over a Flower ``Grid`` (:mod:`.grid`), or over a line to a process that has
one (:mod:`.bridge`). Nothing of Flower is imported here, so a coordinator may do without it.
"""

from __future__ import annotations

from typing import Protocol

#: what a message may hold: a frame of the run, a question who this node is, or the answer to it.
FRAME, CHALLENGE, INTRODUCTION = "frame", "challenge", "introduction"

#: kind and bytes of an answer; or an empty kind, and why there is none, in UTF-8.
Answer = tuple[str, bytes]


class Post(Protocol):
    """What the transport needs of Flower."""

    def nodes(self) -> list[int]:
        """The nodes that are connected."""

    def push(self, node: int, kind: str, data: bytes, ttl: float) -> str | None:
        """Send a message; its id, or None where the SuperLink did not take it. Raises Exception where that is not known;
        PppmlError where nothing will be.
        """

    def pull(self, message_id: str, seconds: float) -> Answer | None:
        """The answer to a message, once; None as long as there is none. One that has begun to arrive has so many seconds for the rest.

        Raises Exception where it is not known now; PppmlError where it will not be.
        """

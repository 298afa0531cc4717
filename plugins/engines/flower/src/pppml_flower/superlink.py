"""``python -m pppml_flower.superlink``: ``flower-superlink`` with its arguments, where only nodes may call from other machines.

Flower serves everything on one port, and whoever reaches it may submit an app, whose code then runs beside the coordinator's keys. Here
what is for operators and for apps is answered to this machine alone: `flwr run` is called where the SuperLink runs.

And a node hands in answers of its own, and nothing else. Flower looks who calls, but not in whose name: a node could hand in messages of
another, or something that breaks every look for answers.

Both rest on names inside flwr, which are looked for first. The process ends with the one that started it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException

from pppml_flower.gate import end_with_starter, module_with

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

#: what the nodes of sites call, from wherever they are.
_FOR_NODES = ("/v1/fleet/",)


def guarded(app: App) -> App:
    """The ASGI app, with everything that is not for nodes refused (403) to other machines."""

    async def door(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or _is_here(scope) or (scope["type"] == "http" and scope["path"].startswith(_FOR_NODES)):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only from the machine of the SuperLink"})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return door


def _is_here(scope: Scope) -> bool:
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def answers_only(push: Callable[..., Any]) -> Callable[..., Any]:
    """Flower's handler of what a node hands in, which refuses (400) all but answers of that node."""

    def pushed(request: Any, **given: Any) -> Any:
        told = [message.metadata for message in request.messages_list]
        if any(each.src_node_id != request.node.node_id or not each.reply_to_message_id for each in told):
            raise HTTPException(400, "a node hands in its own answers, and nothing else")
        return push(request=request, **given)

    return pushed


def main() -> None:
    """Run it."""
    end_with_starter()
    handing = module_with("flwr.superlink.servicer.fleet.fleet_handlers", "push_messages")
    handing.push_messages = answers_only(handing.push_messages)
    served = module_with("flwr.superlink.main", "create_app")
    whole = served.create_app
    served.create_app = lambda *given, **settings: guarded(whole(*given, **settings))
    module_with("flwr.superlink.cli", "flower_superlink").flower_superlink()


if __name__ == "__main__":
    main()

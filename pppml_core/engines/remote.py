"""Sites that live by themselves: inviting them, and signing what they are told. For engines that do not start their sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from pppml_core.engines.around import Around
from pppml_core.errors import RunFailed, WireError
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.identity import Identity, load_identity
from pppml_core.federation.invitation import JOIN, invitation_to
from pppml_core.federation.letter import written
from pppml_core.interfaces.engine import Job, Loss, Topology, Transport, Walk
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message


def invite(job: Job, transport: Transport, topology: Topology = "p2p") -> Transport:
    """The transport over which the run is to be held, when every site has joined it: each frame a letter that the coordinator signed.

    Raises RunFailed with the reasons of all that did not join. Where rounds were held before, a site that is out of reach is no reason: it
    joined then, and is lost as in any round.

    ``transport`` carries letters; its ``walk``, where it has one, hands a letter to the first of the path and reports how it went on. On a
    ``star`` relays pass the coordinator, also where the transport could have them handed on.
    """
    parts: Assembly = job.parts
    identity = load_identity(job.home(SERVER))
    walks = topology == "p2p" and hasattr(transport, "walk")
    signed = (SignedWalks if walks else Signed)(transport, identity)
    body = invitation_to(job, parts, walks=walks).body(identity)
    frames = ((site, encode_message(Message(job.run, 0, 1, JOIN, JOIN, SERVER, site, body))) for site in job.sites)
    reasons = dict.fromkeys(job.sites, "it did not answer")
    for site, reply in signed.deliver(frames):
        if (reason := _reason(reply, resumed=job.resumed)) is None:
            reasons.pop(site, None)
        else:
            reasons[site] = reason
    if reasons:
        text = "; ".join(f"{site}: {reason}" for site, reason in reasons.items())
        raise RunFailed(f"not every site joins the run: {text}", place="join", hint="settle it with those sites, then start again")
    return signed


class Signed(Around):
    """A transport that puts every frame into a letter of the coordinator's."""

    def __init__(self, inner: Transport, identity: Identity) -> None:
        super().__init__(inner)
        self._identity = identity

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """As the inner one; replies are frames."""
        return self._inner.deliver((site, written(self._identity, SERVER, frame)) for site, frame in frames)


class SignedWalks(Signed):
    """One whose sites hand relays on among themselves."""

    def walk(self, path: Sequence[str], frame: bytes, bridge: bool) -> Walk:
        """The way of a relay is signed with its first letter; a site that is passed over at the beginning gets none."""
        message, passed = decode_message(frame), list[str]()
        walk: Callable[[Sequence[str], bytes, bool], Walk] = getattr(self._inner, "walk")  # noqa: B009 - no part of the protocol's type
        for index, site in enumerate(path):
            own = frame if message.recipient == site else encode_message(replace(message, recipient=site))
            rest = tuple(path[index + 1 :])
            found = walk((site, *rest), written(self._identity, SERVER, own, rest, bridge=bridge), bridge)
            if found.steps or not isinstance(found.reply, Loss) or found.reply.handed or found.at != site:
                return replace(found, bridged=(*passed, *found.bridged))
            if not bridge:
                return Walk(site, found.reply, (), tuple(passed), own)
            passed.append(site)
        return Walk(SERVER, Loss("nobody is left to hand it to", handed=False), (), tuple(passed))


def _reason(reply: bytes | Loss, *, resumed: bool) -> str | None:
    """Why this is not a site's consent; None where it is."""
    if isinstance(reply, Loss):
        return None if resumed else reply.reason
    try:
        message = decode_message(reply)
    except WireError as error:
        return f"its reply could not be read: {error}"
    if message.kind == "reply" and message.stage == JOIN and message.body == {"joined": True}:
        return None
    verb = {"refused": "refused", "failed": "failed"}.get(message.kind, "answered something else")
    return f"it {verb}: {message.body.get('reason', 'no reason given')}"

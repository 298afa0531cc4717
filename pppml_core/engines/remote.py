"""Inviting sites that live by themselves: for engines that do not start their sites."""

from __future__ import annotations

from pppml_core.errors import RunFailed, WireError
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.identity import load_identity
from pppml_core.federation.invitation import JOIN, invitation_to
from pppml_core.interfaces.engine import Job, Loss, Transport
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message


def invite(job: Job, transport: Transport) -> None:
    """Return when every site has joined the run. Raises RunFailed with the reasons of all that did not.

    Where rounds were held before, a site that is out of reach is no reason: it joined then, and is lost as in any round.
    """
    parts: Assembly = job.parts
    body = invitation_to(job, parts).body(load_identity(job.home(SERVER)))
    frames = ((site, encode_message(Message(job.run, 0, 1, JOIN, JOIN, SERVER, site, body))) for site in job.sites)
    reasons = dict.fromkeys(job.sites, "it did not answer")
    for site, reply in transport.deliver(frames):
        if (reason := _reason(reply, resumed=job.resumed)) is None:
            reasons.pop(site, None)
        else:
            reasons[site] = reason
    if reasons:
        text = "; ".join(f"{site}: {reason}" for site, reason in reasons.items())
        raise RunFailed(f"not every site joins the run: {text}", place="join", hint="settle it with those sites, then start again")


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

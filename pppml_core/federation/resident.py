"""A site that lives by itself, at a hospital: engines that it joins hand it frames and take its replies.

Everything that is the site's is in its home: identity, roster, policy, and ``runs/<run>/`` with the invitation it accepted and what it holds of
that run. So a process that is started again goes on from there. Of an attempt in which it was lost it knows nothing, and its record on the
disk makes it refuse that attempt: no mask and no noise is ever used twice.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pppml_core.errors import DataError, PolicyRefusal, WireError
from pppml_core.federation.admission import after_code, before_code
from pppml_core.federation.checks import own_misfits
from pppml_core.federation.files import write_atomic
from pppml_core.federation.home import open_home
from pppml_core.federation.identity import Identity, derive, load_identity, statement
from pppml_core.federation.invitation import JOIN, Invitation, read_invitation
from pppml_core.federation.own_parts import own_parts
from pppml_core.federation.policy import load_policy
from pppml_core.federation.reason import reason_of
from pppml_core.federation.site import Site, SiteHost
from pppml_core.interfaces.engine import Job
from pppml_core.randomness import entropy
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Body, Message

INVITATION = "invitation"
FROZEN = "frozen"


class Resident:
    """One site in its home.

    Args:
        home: made with `pppml site init`.
        recreated: the engine starts a new process for every message: what a site holds within an attempt is kept in its home, sealed
            under a key that follows from its identity.
    """

    def __init__(self, home: Path, *, recreated: bool = False) -> None:
        self.home = open_home(home)
        self._identity = load_identity(home)
        self._recreated = recreated
        #: the run this process takes part in; a newer one takes its place.
        self._run = b""
        self._site: Site | None = None
        self._lock = threading.Lock()

    def receive(self, frame: bytes) -> bytes:
        """The reply to one frame. Never raises: it answers ``refused`` or ``failed`` with the reason."""
        with self._lock:  # engines may call from several threads; a site does one thing after the other
            return self._receive(frame)

    def _receive(self, frame: bytes) -> bytes:
        try:
            message = decode_message(frame)
        except WireError as error:
            return self._reply(Message(bytes(16), 0, 1, "unreadable", "", SERVER, self.home.name), "failed", reason_of(error))
        try:
            if message.kind == JOIN:
                return self._reply(message, "reply", self._join(message, frame))
            site = self._living(message.run)
            reply = site.receive(frame)
            if self._recreated:
                self._freeze(message.run, site)
            return reply
        except PolicyRefusal as error:
            return self._reply(message, "refused", reason_of(error))
        except Exception as error:
            # Whatever it is, an engine that carried it to the coordinator would carry along what it says of this machine.
            return self._reply(message, "failed", reason_of(error))

    def _join(self, message: Message, frame: bytes) -> Body:
        if message.recipient != self.home.name:
            raise WireError("this message is for another site", place=self.home.name)
        asked = read_invitation(message, open_home(self.home.folder).pinned)
        host = self._accept(asked)
        if wrong := own_misfits(host.assembly, self.home.name, host.privacy):
            raise DataError("; ".join(wrong), place=self.home.name)
        write_atomic(self._folder(message.run) / INVITATION, frame)
        return {"joined": True}

    def _living(self, run: bytes) -> Site:
        """The site in a run that it has joined, brought to life where this process does not hold it."""
        if self._site is not None and run == self._run:
            return self._site
        try:
            frame = (self._folder(run) / INVITATION).read_bytes()
        except OSError as error:
            raise WireError("this site has not joined this run", place=self.home.name) from error
        host = self._accept(read_invitation(decode_message(frame), open_home(self.home.folder).pinned))
        if self._recreated and (frozen := self._frozen(run)) is not None:
            self._site = Site.thaw(self.home.name, host, frozen)
        assert self._site is not None
        return self._site

    def _accept(self, asked: Invitation) -> SiteHost:
        """Check the invitation, build the run's parts, bring the site to life. The policy is read anew: it may have changed."""
        home, policy = open_home(self.home.folder), load_policy(self.home.folder)
        before_code(home, policy, asked)
        homes = {home.name: home.folder}
        job = Job(asked.run, asked.config, self._folder(asked.run), asked.sites, asked.sizes, {}, homes)
        host = SiteHost(replace(job, parts=own_parts(job, home.name, Registry.discover())))
        after_code(home, policy, asked, host)
        torch.set_num_threads(host.assembly.config.training.threads)  # part of what makes results equal on every engine
        self._run, self._site = asked.run, host.site(home.name, policy)
        return host

    def _folder(self, run: bytes) -> Path:
        return self.home.folder / "runs" / run.hex()

    # -- where an engine recreates sites -------------------------------------------------------------------------------------------

    def _freeze(self, run: bytes, site: Site) -> None:
        nonce = entropy(12)
        write_atomic(self._folder(run) / FROZEN, nonce + AESGCM(_key(self._identity, run)).encrypt(nonce, site.freeze(), run))

    def _frozen(self, run: bytes) -> bytes | None:
        try:
            sealed = (self._folder(run) / FROZEN).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return AESGCM(_key(self._identity, run)).decrypt(sealed[:12], sealed[12:], run)
        except (InvalidTag, ValueError) as error:
            raise WireError("what this site held of the attempt is damaged", place=self.home.name) from error

    def _reply(self, message: Message, kind: str, body: Body) -> bytes:
        return encode_message(Message(message.run, message.round, message.attempt, kind, message.stage, self.home.name, SERVER, body))


def _key(identity: Identity, run: bytes) -> bytes:
    # Ed25519 signatures are deterministic and unpredictable without the key, so one over a statement of its own purpose serves as a secret.
    return derive(identity.sign(statement("frozen-site", run, {})), b"pppml-frozen-v1")

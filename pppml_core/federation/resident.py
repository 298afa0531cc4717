"""A site that lives by itself, at a hospital: engines that it joins hand it frames and take its replies.

Everything that is the site's is in its home: identity, roster, policy, the account of what its runs cost (:mod:`.site_ledger`), the log of
what left it (:mod:`.audit`), a log to watch it by (:mod:`.site_log`), and ``runs/<run>/`` with the invitation it accepted and what it
holds of that run. So a process that is started again goes on from there. Of an attempt in which it was lost it knows nothing, and its
record on the disk makes it refuse that attempt: no mask and no noise is ever used twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pppml_core.errors import DataError, PolicyRefusal, PppmlError, WireError
from pppml_core.federation.admission import Case, about_run, after_code, before_building, before_code
from pppml_core.federation.audit import Audit, Strangers, read_audit
from pppml_core.federation.chain import ChainBroken
from pppml_core.federation.checks import own_misfits
from pppml_core.federation.home import open_home
from pppml_core.federation.identity import ROSTER_FILE, load_identity, load_roster
from pppml_core.federation.invitation import JOIN, Invitation, read_invitation
from pppml_core.federation.joined import Joined
from pppml_core.federation.letter import Letter, frame_in, read_letter, written
from pppml_core.federation.lives import Life, Lives
from pppml_core.federation.own_parts import own_parts
from pppml_core.federation.pace import Pace, Steps
from pppml_core.federation.policy import POLICY_FILE, load_policy
from pppml_core.federation.reason import reason_of
from pppml_core.federation.site import Site
from pppml_core.federation.site_file import SITE_FILE
from pppml_core.federation.site_host import SiteHost
from pppml_core.federation.site_ledger import Account
from pppml_core.federation.site_log import SiteLog
from pppml_core.federation.timetable import Rounds, check_timetable, hours, local_time
from pppml_core.federation.witnesses import check_witnesses, refuse_older, refuse_older_than_log
from pppml_core.interfaces.engine import Job
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Body, Message

_NO_AUDIT = "this site cannot write its audit log"
_STRANGER = "this site answers letters that its pinned coordinator signed, and no others (pppml site show, pppml site trust)"
_NOT_OPEN = "no attempt with you is open at this site"
_TOO_FAST = "this site was asked too often; it answers again in a while"
_log = logging.getLogger("pppml.site")


class Resident:
    """One site in its home, which was made with `pppml site init`.

    Whoever makes one sees that no other process has one of the same home (``pppml_core.engines.parties.alone``): two would answer one
    attempt twice.
    """

    def __init__(self, home: Path) -> None:
        self.home = open_home(home)
        self._identity = load_identity(home)
        self._account = Account(home, self._identity)
        self._audit: Audit | None = None
        self._strangers = Strangers()
        self._pace = Pace()
        self._journal = SiteLog(home)
        self._journal.started()
        self._lives = Lives()
        self._lock = threading.Lock()

    def receive(self, data: bytes, skipped: int = 0) -> bytes:
        """What one letter is answered with. Never raises: it answers ``refused`` or ``failed`` with the reason.

        The reply, a frame for whoever handed the letter in; or, where the letter names a path, a letter of this site's own to be handed to
        the next site of it. What it returns is in the audit log already, the very frame in it. Where that cannot be written the answer
        stays here. Two things a site says without writing them down one by one: that this is so, and that it does not talk to strangers.

        Args:
            data: a :class:`.letter.Letter`; its signature is verified before anything else is done.
            skipped: sites at the beginning of its path that surely cannot be reached, where it says that they may be passed over.
        """
        with self._lock:  # engines may call from several threads; a site does one thing after the other
            began = time.perf_counter()
            try:
                letter = self._verified(data)
                message = decode_message(letter.frame)
                if letter.signer not in (SERVER, message.sender):
                    raise WireError("one site cannot sign for another", place="letter")
            except PppmlError as error:
                return self._turn_away(data, error)
            if (why := self._unheard(letter, message)) is not None:
                return self._turn_away(data, PppmlError(why), why)
            try:
                self._audit = self._audit or Audit(self.home.folder, self._identity)
                frame, about = self._answer(message, letter, skipped)
                line = self._audit.note(frame, about)
            except Exception as error:
                if message.kind == JOIN:
                    self._lives.end_idle(message.run)  # it begins with a line about the join (`_living`)
                self._journal.unwritable(error)
                _log.error("nothing leaves this site: %s: %s", _NO_AUDIT, error)
                return self._reply(message, "failed", {"reason": _NO_AUDIT})
            self._journal.answered(line, len(data), time.perf_counter() - began)
            if line["to"] == SERVER:
                return frame
            return written(self._identity, self.home.name, frame, letter.path[skipped + 1 :], bridge=letter.bridge)

    def _verified(self, data: bytes) -> Letter:
        letter = read_letter(data)
        letter.verify(load_roster(self.home.folder))
        return letter

    def _unheard(self, letter: Letter, message: Message) -> str | None:
        """Why nothing at all is done for a letter; None where it is heard.

        The coordinator is heard of any run. Another site is heard of an attempt that is open here, and that it takes part in: for no word
        of its own is a run looked at anew.
        """
        now, life, peer = time.monotonic(), self._lives.of(message.run, self._stands()), letter.signer != SERVER
        if peer and (life is None or letter.signer not in life.site.cohort):
            return _NOT_OPEN
        place = (message.round, message.attempt)
        if life is not None and not (peer and place != life.site.attempt) and life.steps.allows(letter.signer, *place):
            return None
        return None if self._pace.allows(letter.signer, now) else _TOO_FAST

    def _turn_away(self, data: bytes, error: PppmlError, told: str = _STRANGER) -> bytes:
        """The same words for everybody, and a count in the log: a line for each would fill the disk for whoever wants it filled."""
        asked = Message(bytes(16), 0, 1, "unreadable", "", SERVER, self.home.name)
        with suppress(WireError):
            asked = decode_message(frame_in(data))
        reply = self._reply(asked, "refused", {"reason": told})
        try:
            self._audit = self._audit or Audit(self.home.folder, self._identity)
            if (line := self._strangers.note(self._audit, len(reply), time.monotonic())) is not None:
                self._journal.turned_away(line)
        except Exception as broken:
            self._journal.unwritable(broken)
        _log.debug("turned away: %s", error)
        return reply

    def _answer(self, message: Message, letter: Letter, skipped: int) -> tuple[bytes, dict[str, Any] | None]:
        """The frame that answers one message, and what the audit log says of it besides."""
        try:
            if message.recipient != self.home.name:
                raise WireError("this message is for another site", place=self.home.name)
            if message.kind == JOIN:
                about = self._join(message, letter)
                return self._reply(message, "reply", {"joined": True}), about
            site = self._living(message.run)
            if letter.signer == SERVER:
                self._lives.use(message.run, time.monotonic())
            self._check_time(message)
            if letter.path:
                site.check_path(message, letter.path)
            reply = site.receive(letter.frame)
            records = self._records(message.run)
            return self._handed_on(message, reply, letter, skipped) if letter.path else reply, {"records": records}
        except PolicyRefusal as error:
            return self._reply(message, "refused", reason_of(error)), None
        except Exception as error:
            # Whatever it is, an engine that carried it to the coordinator would carry along what it says of this machine.
            return self._reply(message, "failed", reason_of(error)), None

    def _handed_on(self, message: Message, reply: bytes, letter: Letter, skipped: int) -> bytes:
        """A reply as a message of this site's own to the next one of a path; a refusal stays one. Where all of it is passed over, this
        site was the last of the relay, and its reply goes back.
        """
        if (answer := decode_message(reply)).kind != "reply" or (letter.bridge and skipped == len(letter.path)):
            return reply
        if not 0 <= skipped < len(letter.path) or (skipped and not letter.bridge):
            raise WireError("nobody is left to hand it to", place=self.home.name)
        return encode_message(replace(message, sender=self.home.name, recipient=letter.path[skipped], body=answer.body))

    def _join(self, message: Message, letter: Letter) -> dict[str, Any] | None:
        """Take part in a run from now on. What the audit log says of it; None where this is the invitation to a run that lives here."""
        if letter.signer != SERVER or message.sender != SERVER:
            raise WireError("only the coordinator invites", place=self.home.name)
        asked = read_invitation(message, open_home(self.home.folder).pinned)
        joined, lives = self._joined(asked.run), self._lives.of(asked.run, self._stands()) is not None
        new = joined.invitation() is None
        if lives and joined.whole() and joined.invitation() == letter.frame:
            self._records(asked.run)
            check_timetable(load_policy(self.home.folder), self.home.folder, local_time())
            return None
        try:
            lines = check_witnesses(self.home.folder, self.home.name, self._identity.public)
        except ChainBroken as error:
            raise PolicyRefusal(f"total_epsilon: this site's account cannot be relied on: {error.message}") from error
        self._refuse_gone(asked.run, lines)
        joined.refuse_other(asked)
        joined.refuse_other_data()
        check_timetable(load_policy(self.home.folder), self.home.folder, local_time())
        self._lives.refuse_full(asked.run, time.monotonic(), new=new)
        case = self._admit(asked, letter.frame)
        if not lives:  # what a site is in never ends by an invitation
            self._live(case, new=new)
        return about_run(case)

    def _check_time(self, message: Message) -> None:
        """Raise PolicyRefusal where a round begins, or scores are asked for, at another time than this site works."""
        if message.kind == "open":
            check_timetable(load_policy(self.home.folder), self.home.folder, local_time(), f"{message.run.hex()} {message.round}")
        elif message.kind == "evaluate" and (reason := hours(load_policy(self.home.folder), local_time())) is not None:
            raise PolicyRefusal(f"hours: {reason}")

    def _begin_training(self, run: bytes, round: int, model: bytes) -> None:
        policy = load_policy(self.home.folder)
        if policy.max_rounds_per_day is not None:
            Rounds(self.home.folder).begin(policy, local_time(), f"{run.hex()} {round} {model.hex()}")

    def _living(self, run: bytes) -> Site:
        """The site in a run that it has joined, brought to life where this process does not hold it, or where what this site insists on was
        edited: then the run is looked at anew, and of an attempt that was open nothing is left. Raises PolicyRefusal where what the home
        holds of it is an older copy.
        """
        if (life := self._lives.of(run, self._stands())) is not None:
            self._records(run)
            torch.set_num_threads(life.threads)
            return life.site
        said = self._refuse_gone(run, read_audit(self.home.folder, self._identity.public)[0])
        if (frame := self._joined(run).invitation()) is None:
            raise WireError("this site has not joined this run", place=self.home.name)
        self._lives.refuse_full(run, time.monotonic())
        self._joined(run).refuse_other_data()
        asked = decode_message(frame)
        case = self._admit(read_invitation(asked, open_home(self.home.folder).pinned))
        if not said and self._audit is not None:  # a crash came between the account and the log
            self._audit.note(self._reply(asked, "reply", {"joined": True}), about_run(case))
        return self._live(case)

    def _records(self, run: bytes) -> Mapping[str, int]:
        """How many entries the records of a run that lives have. Raises PolicyRefusal where they are fewer than this process saw before."""
        life = self._lives[run]
        life.records = refuse_older(self.home.folder, self.home.name, run, life.records)
        return life.records

    def _refuse_gone(self, run: bytes, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Raise PolicyRefusal where this run was accepted and what was held of it is not there any more. Whether the log tells of the join;
        these are its lines.

        With it went the record of attempts and releases, and the noise that was drawn: to begin anew under the same name would answer
        again, with other noise, and the account would count it once.
        """
        if not self._joined(run).whole() and self._account.holds(run):
            raise PolicyRefusal("joined: what this site held of this run is gone, so it takes part in it no more; begin a new run")
        return refuse_older_than_log(self.home.folder, self.home.name, lines, run)

    def _admit(self, asked: Invitation, frame: bytes = b"") -> Case:
        """Check the invitation, build the run's parts, enter the run into this site's account. The policy is read anew: it may have
        changed. ``frame``: of an invitation that is not kept yet.
        """
        joined, stands = self._joined(asked.run), self._stands()
        own = joined.own()
        home, policy = open_home(self.home.folder), load_policy(self.home.folder)
        case = Case(home, policy, asked, self._account, standing=stands)
        before_code(case)
        registry = Registry.discover()
        before_building(case, registry)
        job = Job(asked.run, asked.config, joined.folder, asked.sites, asked.sizes, {}, {home.name: home.folder})
        host = SiteHost(replace(job, parts=own_parts(job, home.name, registry)))
        after_code(case, host)
        if wrong := own_misfits(host.assembly, home.name, host.privacy):
            raise DataError("; ".join(wrong), place=home.name)
        if frame:
            # Before the account: a run that is entered and not held is one that was lost (`_refuse_gone`).
            joined.keep(frame, own)
        try:
            lines = self._audit.count() if self._audit is not None else 0
            self._account.reserve(asked.run, case.claim, case.limits, about_run(case), lines)
        except PolicyRefusal:
            if not self._account.holds(asked.run):
                joined.drop()
            raise
        return case

    def _live(self, case: Case, *, new: bool = False) -> Site:
        host, run = case.host, case.asked.run
        assert host is not None
        threads = host.assembly.config.training.threads
        torch.set_num_threads(threads)  # part of what makes results equal on every engine
        site = host.site(self.home.name, case.policy)
        site.before_training = partial(self._begin_training, run)
        rounds = host.assembly.config.run.rounds
        records = refuse_older(self.home.folder, self.home.name, run, {})
        self._lives.begin(run, Life(site, case.standing, threads, Steps(rounds), time.monotonic(), records), new=new)
        return site

    def _stands(self) -> tuple[bytes, ...]:
        return tuple(_bytes_of(self.home.folder / name) for name in (POLICY_FILE, ROSTER_FILE, SITE_FILE))

    def _joined(self, run: bytes) -> Joined:
        return Joined(self.home.folder, self.home.name, run)

    def _reply(self, message: Message, kind: str, body: Body) -> bytes:
        return encode_message(Message(message.run, message.round, message.attempt, kind, message.stage, self.home.name, SERVER, body))


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:  # whoever needs it says so; here it is only another one than before
        return str(error.errno).encode()

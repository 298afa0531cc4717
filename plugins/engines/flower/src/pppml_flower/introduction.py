"""Which node is which site. A node that names itself proves it: it signs a question with the identity pinned for that name.

A node's number is Flower's, a site's name is ours, and a SuperLink could put any node behind any number. So the coordinator asks each
node with a fresh nonce, and the home at the node signs nonce, run, its name and its own number as Flower told it. An answer cannot be
used again, and a node cannot pass another node's answer off as its own.

A home names itself to its coordinator alone: the question is signed, over nonce, run and the number of the node that is asked. What it
answers is in its audit log.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pppml_core.errors import PppmlError, RunFailed, WireError
from pppml_core.federation.home import open_home
from pppml_core.federation.identity import SIGNATURE_BYTES, Identity, load_identity, statement, verify
from pppml_core.randomness import entropy
from pppml_core.wire.codec import decode, encode
from pppml_core.wire.messages import SERVER
from pppml_flower.post import CHALLENGE, INTRODUCTION, Post

_NONCE = 32
_SIZES = {"run": 16, "nonce": _NONCE, "signature": SIGNATURE_BYTES}
#: seconds between two looks for new nodes; before a node is asked again that could not answer; and one that did not.
_LOOK, _AGAIN, _SILENT = 1.0, 15.0, 60.0
#: seconds an answer that has begun to arrive has for the rest.
_REST = 15.0


def introduce(home: Path, challenge: bytes, node: int) -> bytes:
    """A home's answer: its name, signed. Raises WireError for something that is no challenge of the coordinator that is pinned here."""
    asked = decode(challenge)
    if not isinstance(asked, dict) or set(asked) != set(_SIZES) or not all(_is_bytes(asked[name], size) for name, size in _SIZES.items()):
        raise WireError("this is no question who this node is", place="challenge")
    own = open_home(home)
    if SERVER not in own.pinned:
        raise WireError("no identity is pinned for the coordinator", place="challenge", hint="pppml site trust")
    verify(own.pinned[SERVER], asked["signature"], _question(asked["run"], asked["nonce"], node), "the coordinator")
    told = {"site": own.name, "signature": load_identity(home).sign(_statement(asked["run"], asked["nonce"], own.name, node))}
    return encode(told)


def challenge_to(node: int, run: bytes, nonce: bytes, identity: Identity) -> bytes:
    """The coordinator's question who this node is."""
    return encode({"run": run, "nonce": nonce, "signature": identity.sign(_question(run, nonce, node))})


def _is_bytes(value: object, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size


def _question(run: bytes, nonce: bytes, node: int) -> bytes:
    return statement("flower-challenge", run, {"nonce": nonce, "node": str(node)})


def _statement(run: bytes, nonce: bytes, site: str, node: int) -> bytes:
    return statement("flower-node", run, {"nonce": nonce, "site": site, "node": str(node)})


class Directory:
    """Site -> node, as proven; asks nodes that it does not know yet.

    Args:
        post: reaches the nodes.
        run: 16 bytes that name the run.
        sites: whom the run is with.
        roster: pinned public identities, by site.
        identity: the coordinator's, which signs the questions.
        poll: seconds between two looks for answers.
        ttl: seconds a question is worth answering.
    """

    def __init__(
        self, post: Post, run: bytes, sites: Iterable[str], roster: Mapping[str, bytes], identity: Identity, poll: float, ttl: float
    ) -> None:
        self._post, self._run, self._identity, self._poll, self._ttl = post, run, identity, poll, ttl
        self._pinned = {site: roster[site] for site in sites if site in roster}
        self.nodes: dict[str, int] = {}
        #: nodes that are connected, as of the last look.
        self.online: set[int] = set()
        #: nodes that were asked -> when they may be asked again; id of the message -> node and nonce.
        self._asked: dict[int, float] = {}
        self._open: dict[str, tuple[int, bytes]] = {}
        #: what nodes answered that are none of the sites, for people.
        self.strange: dict[int, str] = {}
        #: what went wrong between here and the SuperLink in the last look, for people.
        self.failed = ""

    @property
    def missing(self) -> list[str]:
        """Sites whose node is not known, or not connected any more."""
        return [site for site in self._pinned if self.nodes.get(site) not in self.online]

    def look(self, seconds: float) -> None:
        """Ask nodes that are new here and listen, until all sites are found or the time is over.

        Raises RunFailed where two nodes prove to be one site.
        """
        deadline = time.monotonic() + seconds
        asked_at = float("-inf")
        while True:
            if time.monotonic() - asked_at >= _LOOK:
                self.failed = ""
                with self._noted():
                    self._ask()
                asked_at = time.monotonic()
            if self.missing:
                self._listen()
            if not self.missing or time.monotonic() >= deadline:
                return
            time.sleep(self._poll)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Whatever Flower's client raises where the SuperLink is away or busy, or an answer cannot be read: the next look may be better."""
        try:
            yield
        except PppmlError:
            raise
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"[:500]

    def _ask(self) -> None:
        self.online = set(self._post.nodes())
        self._asked = {node: again for node, again in self._asked.items() if node in self.online}
        if not self.missing:
            return
        now = time.monotonic()
        for node in sorted(node for node in self.online if self._asked.get(node, now) <= now):
            nonce = entropy(_NONCE)
            message_id = self._post.push(node, CHALLENGE, challenge_to(node, self._run, nonce, self._identity), self._ttl)
            if message_id is not None:
                self._asked[node] = now + _SILENT
                self._open[message_id] = node, nonce

    def _listen(self) -> None:
        for message_id, (node, nonce) in list(self._open.items()):
            answer = None
            with self._noted():
                answer = self._post.pull(message_id, _REST)
            if answer is None:
                continue
            del self._open[message_id]
            kind, data = answer
            # Without an answer nobody lives there yet, or its connection was cut; with one, it will have no other.
            self._asked[node] = float("inf") if kind else time.monotonic() + _AGAIN
            try:
                site = self._proven(kind, data, node, nonce)
            except WireError as error:
                self.strange[node] = error.message
                continue
            before = self.nodes.get(site, node)
            if before != node and before in self.online:
                text = f"two nodes, {before} and {node}, hold the identity of {site}"
                raise RunFailed(text, place="join", hint="a home belongs to one node: end one of them, and ask who copied the key")
            self.nodes[site] = node
            self.strange.pop(node, None)

    def _proven(self, kind: str, data: bytes, node: int, nonce: bytes) -> str:
        if kind != INTRODUCTION:
            raise WireError(data.decode(errors="replace") if not kind else "it answered something else")
        told = decode(data)
        if not isinstance(told, dict) or set(told) != {"site", "signature"} or not isinstance(site := told["site"], str):
            raise WireError("its introduction has another form")
        if site not in self._pinned:
            raise WireError(f"it says it is {site!r:.80}, which is none of the sites pinned here for this run")
        verify(self._pinned[site], told["signature"], _statement(self._run, nonce, site, node), f"the node that says it is {site}")
        return site

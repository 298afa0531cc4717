"""Letters: frames on their way between parties of real sites, each signed by the party that sends it.

A site at a hospital cannot see who is at the other end of an engine: another site of the run may reach it as well as the coordinator does,
and whoever runs the engine may. So every frame comes in a letter, and its signature is by the coordinator's pinned identity, or, for a hop
of a relay that sites hand on among themselves, by the site that hands it on. The way a relay takes is signed with it. Frames themselves,
and with them transcript, manifest and model, are those of any other engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pppml_core.errors import WireError
from pppml_core.federation.identity import Identity, statement, verify
from pppml_core.wire.codec import decode, encode

_FORM: dict[str, type] = {"signer": str, "frame": bytes, "path": list, "bridge": bool, "signature": bytes}
#: what letters begin with, and frames do not.
_MARK = b"pppml-letter-1:"


@dataclass(frozen=True)
class Letter:
    """A frame, who signed it, and where the answer is to be handed on to.

    Args:
        signer: ``server``, or the site that hands it on.
        frame: an encoded message.
        path: sites to which the answer goes next, in order; empty: it is a reply to the coordinator.
        bridge: a site of the path that cannot be reached is passed over.
        signature: Ed25519, 64 bytes, over all of this.
    """

    signer: str
    frame: bytes
    path: tuple[str, ...]
    bridge: bool
    signature: bytes

    def verify(self, roster: Mapping[str, bytes]) -> None:
        """Raise WireError unless its signer is pinned in ``roster`` and has signed it."""
        if self.signer not in roster:
            raise WireError("no identity is pinned for who signed this letter", place="letter")
        signed = _statement(self.signer, self.frame, self.path, self.bridge)
        verify(roster[self.signer], self.signature, signed, "the letter")

    def to_bytes(self) -> bytes:
        """As it travels."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in _FORM}
        return _MARK + encode({**plain, "path": list(self.path)})


def written(identity: Identity, signer: str, frame: bytes, path: tuple[str, ...] = (), *, bridge: bool = False) -> bytes:
    """A letter as it travels, signed by this identity under its party's name."""
    signature = identity.sign(_statement(signer, frame, path, bridge))
    return Letter(signer, frame, path, bridge, signature).to_bytes()


def read_letter(data: bytes) -> Letter:
    """The letter in such bytes; who signed it is not known before :meth:`Letter.verify`. Raises WireError for anything else."""
    if not data.startswith(_MARK):
        raise WireError("this is no signed letter", place="letter")
    held = decode(memoryview(data)[len(_MARK) :])
    if not isinstance(held, dict) or set(held) != set(_FORM) or any(type(held[name]) is not form for name, form in _FORM.items()):
        raise WireError(f"a letter must hold {', '.join(_FORM)}", place="letter")
    if not all(type(site) is str for site in held["path"]):
        raise WireError("the path of a letter must be names", place="letter")
    return Letter(held["signer"], held["frame"], tuple(held["path"]), held["bridge"], held["signature"])


def letter_in(data: bytes) -> Letter | None:
    """The letter in such bytes; None where they are a frame. Raises WireError for a damaged letter."""
    return read_letter(data) if data.startswith(_MARK) else None


def frame_in(data: bytes) -> bytes:
    """The frame of a letter, or the frame itself. Raises WireError for a damaged letter."""
    letter = letter_in(data)
    return data if letter is None else letter.frame


def _statement(signer: str, frame: bytes, path: tuple[str, ...], bridge: bool) -> bytes:
    # The frame says of which run, round, attempt and stage it is, and for whom.
    told = {"signer": signer, "path": list(path), "bridge": bridge}
    return statement("letter", hashlib.sha256(frame).digest(), told)

"""What a home holds of one run that it has joined: the invitation it accepted, where its own data were then, and a folder of the site's.

A run that is joined stays what it was. Other data, or another invitation, are another run.
"""

from __future__ import annotations

import json
from pathlib import Path

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.files import write_atomic
from pppml_core.federation.invitation import Invitation
from pppml_core.federation.site_file import load_site_file
from pppml_core.wire.codec import decode_message

INVITATION = "invitation"
#: what site.yaml said of this site's data.
OWN = "own"


class Joined:
    """In ``home/runs/<run>``, of the site called ``name``."""

    def __init__(self, home: Path, name: str, run: bytes) -> None:
        self.folder = home / "runs" / run.hex()
        self._home, self._name = home, name

    def invitation(self) -> bytes | None:
        """The frame of the one that was accepted; None where the run is not joined."""
        try:
            return (self.folder / INVITATION).read_bytes()
        except FileNotFoundError:
            return None

    def whole(self) -> bool:
        """Whether all of it is there."""
        return (self.folder / INVITATION).exists() and (self.folder / self._name).is_dir()

    def own(self) -> bytes:
        """What site.yaml says of this site's data now. Raises ConfigError."""
        own = load_site_file(self._home)
        return json.dumps({"data": own.data, "task": own.task}, sort_keys=True, default=str).encode()

    def keep(self, frame: bytes, own: bytes) -> None:
        """Join: an invitation, and what :meth:`own` said before its parts were built."""
        for folder in (self.folder.parent, self.folder, self.folder / self._name):
            folder.mkdir(mode=0o700, exist_ok=True)
        write_atomic(self.folder / OWN, own)
        write_atomic(self.folder / INVITATION, frame)

    def drop(self) -> None:
        """Take the invitation back."""
        (self.folder / INVITATION).unlink(missing_ok=True)

    def refuse_other(self, asked: Invitation) -> None:
        """Raise PolicyRefusal where this site has joined the run, and was asked for something else then."""
        if (frame := self.invitation()) is None:
            return
        held = decode_message(frame).body
        now = {"config": asked.config, "sites": list(asked.sites), "sizes": asked.sizes, "terms": asked.terms}
        if other := [name for name, value in now.items() if held.get(name) != value]:
            raise PolicyRefusal(f"joined: this site joined this run with another {' and '.join(other)}")

    def refuse_other_data(self) -> None:
        """Raise PolicyRefusal where this site has joined the run with other data, or other settings of its own."""
        if self.invitation() is None:
            return
        if not ((self.folder / OWN).exists() and (self.folder / OWN).read_bytes() == self.own()):
            text = "joined: data or task in this site's site.yaml are not what they were when it joined this run"
            raise PolicyRefusal(text, hint="put them back, or begin a new run")

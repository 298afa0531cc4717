"""A site's own folder: its state after each round, its contribution of a round, its attempts. Nothing here ever leaves the site.

The state of the last two rounds is kept, and of rounds the server asked to keep because they may be selected, so that a resumed run
finds the newest round that all parties have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pppml_core.errors import WireError
from pppml_core.federation.files import write_atomic
from pppml_core.wire.codec import decode, encode


class SiteStore:
    """Files under ``folder``: ``state-R``, ``contribution`` (of one round), ``attempts``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rounds(self) -> list[int]:
        """Rounds whose state is held."""
        return sorted(int(p.name.removeprefix("state-")) for p in self.folder.glob("state-[0-9]*"))

    def state(self, round: int) -> Mapping[str, Any] | None:
        """The site's state after a round; None where there is none (round 0 never has one)."""
        held: Mapping[str, Any] | None = self._read(f"state-{round:06d}")
        return held

    def save_state(self, round: int, state: Mapping[str, Any], keep: Iterable[int]) -> None:
        """Keep the state after this round, drop those no longer needed."""
        write_atomic(self.folder / f"state-{round:06d}", encode(state))
        wanted = {round, round - 1, *keep}
        for held in self.rounds():
            if held not in wanted and held < round:
                (self.folder / f"state-{held:06d}").unlink(missing_ok=True)

    def contribution(self, name: str, key: bytes) -> Any:
        """The cached contribution if it was made for exactly this key (round, model and terms), else None."""
        held = self._read(f"contribution-{name}")
        return held["values"] if held is not None and held["key"] == key else None

    def save_contribution(self, name: str, key: bytes, values: Any) -> None:
        """Cache the contribution: a retry of the round must send the same one, not train (or draw noise) again."""
        write_atomic(self.folder / f"contribution-{name}", encode({"key": key, "values": values}), sync=False)

    def attempts(self) -> tuple[int, int]:
        """The last (round, attempt) this site took part in; (0, 0) before the first."""
        held = self._read("attempts")
        return (0, 0) if held is None else (held["round"], held["attempt"])

    def save_attempt(self, round: int, attempt: int) -> None:
        """Remember an attempt before anything of it is answered."""
        write_atomic(self.folder / "attempts", encode({"round": round, "attempt": attempt}))

    def _read(self, name: str) -> Any:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return decode(path.read_bytes())
        except WireError as error:
            raise WireError(f"the site's file is damaged: {error}", place=str(path), hint="remove it; the round is then trained again") from error

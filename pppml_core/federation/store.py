"""A site's own folder: its state after each round, its contribution of a round, its attempts. Nothing here ever leaves the site.

A resumed run goes back to a checkpoint of the server: the newest or, where that is damaged, the one before, at most two rounds behind
what a site may have begun. So a site keeps what it held after each of the last three rounds, and after rounds the server named because
they may be selected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pppml_core.errors import WireError
from pppml_core.federation.files import remove_unfinished, write_atomic
from pppml_core.wire.codec import decode, encode

#: rounds back from the present one that a resumed run may have to go.
REACH = 2


class SiteStore:
    """Files under ``folder``: ``state-R``, ``contribution-NAME`` (of one round), ``attempts``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tidy(self) -> None:
        """Remove what a killed process left unfinished; a run begins with this."""
        remove_unfinished(self.folder)

    def rounds(self) -> list[int]:
        """Rounds whose state is held, oldest first; 0 is the state before the first."""
        return sorted(int(p.name.removeprefix("state-")) for p in self.folder.glob("state-[0-9]*"))

    def state(self, round: int) -> Mapping[str, Any] | None:
        """The site's state after a round: that of the newest round up to it in which the site took part; None where there is none."""
        newest = _newest(self.rounds(), round)
        return None if newest is None else self._read(f"state-{newest:06d}")

    def save_state(self, round: int, state: Mapping[str, Any], keep: Iterable[int]) -> None:
        """Keep the state after this round, drop those no longer needed."""
        write_atomic(self.folder / f"state-{round:06d}", encode(state))
        held = self.rounds()
        needed = {_newest(held, wanted) for wanted in (*range(round - REACH, round + 1), *keep)}
        for other in held:
            if other < round and other not in needed:
                self._drop(other)

    def go_back_to(self, round: int) -> None:
        """Drop states of later rounds: a resumed run holds those rounds anew, and not always with the same sites."""
        for later in self.rounds():
            if later > round:
                self._drop(later)

    def contribution(self, name: str, key: bytes) -> Any:
        """The cached contribution if it was made for exactly this key (round, model and terms), else None."""
        held = self._read(f"contribution-{name}")
        return held["values"] if held is not None and held["key"] == key else None

    def save_contribution(self, name: str, key: bytes, values: Any) -> None:
        """Cache the contribution: a retry of the round must send the same one, not train (or draw noise) again."""
        write_atomic(self.folder / f"contribution-{name}", encode({"key": key, "values": values}), sync=False)

    def attempts(self) -> dict[int, int]:
        """Round -> the last attempt this site took part in, for the last rounds it was asked for."""
        held = self._read("attempts")
        return {} if held is None else {int(round): attempt for round, attempt in held.items()}

    def save_attempt(self, round: int, attempt: int) -> None:
        """Remember an attempt before anything of it is answered."""
        held = {**self.attempts(), round: attempt}
        last = sorted(held)[-(REACH + 2) :]
        write_atomic(self.folder / "attempts", encode({str(r): held[r] for r in last}))

    def answered(self, round: int, attempt: int) -> bool:
        """Whether something of this attempt may have been answered before: it, a later one, or a round that lies too far back."""
        held = self.attempts()
        forgotten = len(held) > REACH + 1 and round < min(held)
        return forgotten or attempt <= held.get(round, 0)

    def _drop(self, round: int) -> None:
        (self.folder / f"state-{round:06d}").unlink(missing_ok=True)

    def _read(self, name: str) -> Any:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return decode(path.read_bytes())
        except WireError as error:
            raise WireError(
                f"the site's file is damaged: {error}", place=str(path), hint="remove it; the round is then trained again"
            ) from error


def _newest(held: Iterable[int], until: int) -> int | None:
    return max((r for r in held if r <= until), default=None)

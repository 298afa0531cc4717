"""A site's own folder: its state after each round, its contribution of a round, its attempts, what it released. None of it leaves the site.

A resumed run goes back to a checkpoint of the server: the newest or, where that is damaged, the one before, at most two rounds behind
what a site may have begun. So a site keeps what it held after each of the last three rounds, and after rounds the server named because
they may be selected.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pppml_core.errors import CheckpointError, PolicyRefusal, WireError
from pppml_core.federation.files import remove_unfinished, sync_folder, write_atomic
from pppml_core.federation.ledger import Ledger
from pppml_core.federation.terms import START_BYTES
from pppml_core.wire.codec import decode, encode

#: rounds back from the present one that a resumed run may have to go.
REACH = 2
#: parts of a site's state that cannot be made again from what others know.
OWN = ("personal", "method", "optimizer")
LEDGER = "ledger.jsonl"
_REMEDY = "restore the file, or start a new run"
#: one line of ``attempts``: round and attempt.
_ATTEMPT = struct.Struct("<QQ")
#: one line of ``released``: round, attempt, which sum, over which sites, and a checksum over these.
_RELEASE = struct.Struct("<QQ16s16s16s")
#: one line of ``scored``: which set was scored, and the hash of the model.
_SCORED = struct.Struct("<16s32s")
_STATE = re.compile(r"state-([0-9]{6,9})")
#: no round and no attempt is as large; a record that says so is damaged.
_FAR = 2**30


class SiteStore:
    """Files under ``folder``: ``state-R``, ``contribution-NAME`` (of one round), ``attempts``, ``released``, ``scored``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tidy(self) -> None:
        """Remove what a killed process left unfinished; a run begins with this."""
        remove_unfinished(self.folder)

    def rounds(self) -> list[int]:
        """Rounds whose state is held, oldest first; 0 is the state before the first."""
        return sorted(int(found[1]) for p in self.folder.glob("state-*") if (found := _STATE.fullmatch(p.name)))

    def check(self) -> None:
        """Read everything a resumed run rests on. Raises CheckpointError naming the file that is damaged or lacks charges."""
        charged = max([int((self.state(round) or {}).get("charged", 0)) for round in self.rounds()], default=0)
        ledger = Ledger(self.folder / LEDGER)
        if (held := len(ledger.entries())) < charged:
            text = f"the site's ledger holds {held} of {charged} privacy charges or more, so what it has spent is not known"
            raise CheckpointError(text, place=str(ledger.path), hint=_REMEDY)
        self.attempts()
        self._releases()

    def state(self, round: int) -> Mapping[str, Any] | None:
        """The site's state after a round: that of the newest round up to it in which the site took part; None where there is none."""
        newest = _newest(self.rounds(), round)
        return None if newest is None else self._read(f"state-{newest:06d}")

    def save_state(self, round: int, state: Mapping[str, Any], keep: Iterable[int]) -> None:
        """Keep the state after this round, drop those no longer needed."""
        self._make_folder()
        # What holds nothing of the site's own is made again after a power cut and need not reach the disk before the round goes on.
        write_atomic(self.folder / f"state-{round:06d}", encode(state), sync=any(state.get(part) for part in OWN))
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
        try:
            held = self._read(f"contribution-{name}")
            return held["values"] if held is not None and held["key"] == key else None
        except (CheckpointError, KeyError, TypeError):
            # Written without a flush to the disk, a power cut may tear it: then the round is trained again.
            return None

    def save_contribution(self, name: str, key: bytes, values: Any) -> None:
        """Cache the contribution: a retry of the round must send the same one, not train (or draw noise) again."""
        self._make_folder()
        write_atomic(self.folder / f"contribution-{name}", encode({"key": key, "values": values}), sync=False)

    def attempts(self) -> dict[int, int]:
        """Round -> the last attempt this site took part in, for the last rounds it was asked for."""
        path = self.folder / "attempts"
        data = path.read_bytes() if path.exists() else b""
        held: dict[int, int] = {}
        for round, attempt in _ATTEMPT.iter_unpack(data[: len(data) - len(data) % _ATTEMPT.size]):
            if round >= _FAR or not 0 < attempt < _FAR:
                # Without it this site could answer an attempt twice: nothing goes on from here.
                raise CheckpointError("the site's record of its attempts is damaged", place=str(path), hint=_REMEDY)
            held[round] = max(attempt, held.pop(round, 0))
        return {r: held[r] for r in sorted(held)[-(REACH + 2) :]}

    def save_attempt(self, round: int, attempt: int) -> None:
        """Remember an attempt before anything of it is answered. Raises WireError for numbers no run has: they would read as damage."""
        if not (0 <= round < _FAR and 0 < attempt < _FAR):
            raise WireError(f"round {round}, attempt {attempt} is out of range", place="attempt")
        self._append("attempts", _ATTEMPT.pack(round, attempt))

    def answered(self, round: int, attempt: int) -> bool:
        """Whether something of this attempt may have been answered before: it, a later one, or a round that lies too far back."""
        held = self.attempts()
        forgotten = len(held) > REACH + 1 and round < min(held)
        return forgotten or attempt <= held.get(round, 0)

    def released(self, round: int, which: str) -> tuple[int, bytes] | None:
        """The attempt of this round that released this sum, and a digest of the sites it is over; None where none did.

        Unlike states, releases are never taken back: a resumed run that holds the round anew must not get a second sum.
        """
        return self._releases().get((round, _digest(which)))

    def released_ever(self, which: str) -> tuple[int, int, bytes] | None:
        """Round and attempt that released a sum of this name, in whatever round, and a digest of its sites; None where none did."""
        wanted = _digest(which)
        found = ((round, *held) for (round, name), held in self._releases().items() if name == wanted)
        return next(found, None)

    def scored(self) -> set[tuple[bytes, bytes]]:
        """What was scored in this run: (digest of the name of a set, hash of the model)."""
        path = self.folder / "scored"
        data = path.read_bytes() if path.exists() else b""
        return {(which, model) for which, model in _SCORED.iter_unpack(data[: len(data) - len(data) % _SCORED.size])}

    def save_scored(self, split: str, model: bytes, most: int) -> None:
        """Remember that a model (its SHA-256) is scored on a set, before it is. Raises PolicyRefusal where it is one more than ``most``."""
        held, new = self.scored(), (_digest(split), model)
        if new in held:
            return
        if len(held) >= most:
            raise PolicyRefusal(f"{most} models were scored in this run, more than its rounds need")
        self._append("scored", _SCORED.pack(*new))

    def save_release(self, round: int, attempt: int, which: str, sites: Iterable[str]) -> None:
        """Remember a release, before anything of it leaves. :meth:`released` says whether there was one."""
        fields = (round, attempt, _digest(which), sites_digest(sites))
        self._append("released", _RELEASE.pack(*fields, _release_check(*fields)))

    def begins(self, start: bytes) -> bool:
        """Whether the run begins, or begins anew, with this number of the coordinator's, which is then remembered; False where it has.

        A message is signed and can be recorded: handed in again, one that says that the run begins must not end what the site is in. Raises
        PolicyRefusal for an earlier start than the last one.
        """
        path = self.folder / "starts"
        data = path.read_bytes() if path.exists() else b""
        held = [data[at : at + START_BYTES] for at in range(0, len(data) - len(data) % START_BYTES, START_BYTES)]
        if start in held[:-1]:
            raise PolicyRefusal("this run was begun anew since this message was written")
        if start not in held:
            self._append("starts", start)
        return start not in held

    def records(self) -> dict[str, int]:
        """Entries of each record that only ever grows, by the name of its file. An entry is on the disk before what it is about leaves."""
        sizes = {"attempts": _ATTEMPT.size, "released": _RELEASE.size, "scored": _SCORED.size, "starts": START_BYTES}
        held = {name: path.stat().st_size // size for name, size in sizes.items() if (path := self.folder / name).exists()}
        if (ledger := self.folder / LEDGER).exists():
            held[LEDGER] = ledger.read_bytes().count(b"\n")
        return held

    def _releases(self) -> dict[tuple[int, bytes], tuple[int, bytes]]:
        path = self.folder / "released"
        data = path.read_bytes() if path.exists() else b""
        held: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        for round, attempt, which, sites, check in _RELEASE.iter_unpack(data[: len(data) - len(data) % _RELEASE.size]):
            if check != _release_check(round, attempt, which, sites):
                # Without it this site could give out a second sum of a round: nothing goes on from here.
                raise CheckpointError("the site's record of what it released is damaged", place=str(path), hint=_REMEDY)
            held.setdefault((round, which), (attempt, sites))
        return held

    def _append(self, name: str, record: bytes) -> None:
        # Appended and synced: one trip to the disk. A part of a record that a crash left was never answered, and is written over.
        path = self.folder / name
        fresh = not path.exists()
        self._make_folder()
        with open(path, "ab") as file:
            file.truncate(file.tell() - file.tell() % len(record))
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            sync_folder(self.folder)

    def _make_folder(self) -> None:
        # Its owner's alone: a contribution is the very thing that a secure sum hides.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _drop(self, round: int) -> None:
        (self.folder / f"state-{round:06d}").unlink(missing_ok=True)

    def _read(self, name: str) -> Any:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return decode(path.read_bytes())
        except WireError as error:
            raise CheckpointError(f"the site's file is damaged: {error.message}", place=str(path), hint=_REMEDY) from error


def sites_digest(sites: Iterable[str]) -> bytes:
    """16 bytes that stand for a set of sites."""
    return _digest(" ".join(sorted(sites)))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _release_check(round: int, attempt: int, which: bytes, sites: bytes) -> bytes:
    return hashlib.sha256(struct.pack("<QQ16s16s", round, attempt, which, sites)).digest()[:16]


def _newest(held: Iterable[int], until: int) -> int | None:
    return max((r for r in held if r <= until), default=None)

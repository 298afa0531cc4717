"""Ledgers that are damaged or gone: nothing goes on as if less had been spent."""

from __future__ import annotations

import os

import pytest

from pppml_core.errors import CheckpointError
from pppml_core.federation.ledger import Ledger
from pppml_core.federation.store import SiteStore


@pytest.mark.parametrize("line", ["[1, 2]", "7", "null", '"text"', '{"round": 1', "[" * 100_000])
def test_a_line_that_is_no_map_is_damaged(tmp_path, line):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"round": 1})
    with open(ledger.path, "a") as file:
        file.write(f"{line}\n")
    ledger.append({"round": 2})
    assert ledger.entries() == [{"round": 1}, {"damaged": line}, {"round": 2}]


def test_the_folder_of_a_new_ledger_is_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    ledger = Ledger(tmp_path / "site" / "ledger.jsonl")
    ledger.append({"round": 1})
    assert synced == [str(ledger.path), str(ledger.path.parent)]
    ledger.append({"round": 2})
    assert synced[2:] == [str(ledger.path)]


def test_a_ledger_that_lacks_charges_ends_a_resumed_run(tmp_path):
    store, ledger = SiteStore(tmp_path), Ledger(tmp_path / "ledger.jsonl")
    for round in (1, 2, 3):
        store.save_state(round, {"personal": {}, "method": {}, "charged": round - 1}, ())
        ledger.append({"round": round})
    store.check()
    lines = ledger.path.read_text().splitlines(keepends=True)
    ledger.path.write_text(lines[0])
    with pytest.raises(CheckpointError, match="holds 1 of 2 privacy charges or more"):
        store.check()
    ledger.path.unlink()
    with pytest.raises(CheckpointError, match="holds 0 of 2"):
        store.check()

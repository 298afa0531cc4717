"""What leaves a site is in its audit log first, or does not leave."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pppml_core.api import Experiment, Run
from pppml_core.discovery import from_objects
from pppml_core.errors import RunFailed
from pppml_core.federation.audit import AUDIT_FILE, read_audit
from pppml_core.federation.identity import load_identity
from pppml_core.federation.letter import written
from pppml_core.federation.resident import Resident
from pppml_core.registry import Registry
from pppml_core.testing.residents import ENGINE, acquaint
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message
from pppml_core.wire.transcript import read_transcript

SITES = ("site_1", "site_2", "site_3")


def go(tmp_path: Path) -> Run:
    registry = Registry.only(*from_objects([ENGINE]))
    about = {"task": "tiny", "training": {"steps": 1}, "run": {"rounds": 2, "transcript": "payloads"}}
    about["engine"] = {"use": "residents", "homes": str(tmp_path / "homes")}
    return Experiment(about, registry=registry).run(tmp_path / "r", reporters=False, report=False)


def logged(home: Path) -> list[dict[str, Any]]:
    return read_audit(home, load_identity(home).public)[0]


def test_the_log_holds_what_the_coordinator_received(tmp_path: Path) -> None:
    run = go(tmp_path)
    received = {site: Counter[str]() for site in SITES}
    for hop in read_transcript(run.folder):
        if hop.sender != SERVER:
            received[hop.sender][hop.sha256] += 1
    for site in SITES:
        lines = logged(tmp_path / "homes" / site)
        (joined,) = [line for line in lines if line["stage"] == "join"]
        assert joined["about"] | {"epsilon": 0} == {
            "name": "run", "rounds": 2, "metrics": "per-site", "task": "tiny", "model": "tiny-net", "personalization": "fedavg",
            "privacy": "none", "aggregator": "plain", "epsilon": 0,
        }  # fmt: skip
        sent = Counter(line["sha256"] for line in lines if line["round"])
        assert sent == received[site], "the same frames, as often"
        assert {name for line in lines for name in line["fields"]} >= {"values", "scores", "joined"}


def knock(resident: Resident, text: str = "hello") -> Message:
    frame = encode_message(Message(b"r" * 16, 3, 2, text, "a-stage", SERVER, "site_1"))
    return decode_message(resident.receive(written(load_identity(resident.home.folder.parent / SERVER), SERVER, frame)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    acquaint(tmp_path, (*SITES, SERVER))
    return tmp_path / "site_1"


def test_refusals_are_in_the_log_with_their_reason(home: Path) -> None:
    resident = Resident(home)
    knock(resident)
    resident.receive(b"no message")
    first, second = logged(home)
    assert (first["kind"], first["stage"], first["round"]) == ("failed", "a-stage", 3)
    assert "has not joined" in first["reason"]
    assert (second["kind"], second["run"], second["count"]) == ("turned-away", "00" * 16, 1)


@pytest.mark.parametrize("fresh", [False, True])
def test_where_the_log_cannot_be_written_nothing_leaves(home: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool) -> None:
    resident = Resident(home)
    knock(resident)
    resident = Resident(home) if fresh else resident

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        reply = knock(resident)
    assert (reply.kind, reply.run, reply.round, reply.attempt, reply.stage) == ("failed", b"r" * 16, 3, 2, "a-stage")
    assert reply.body == {"reason": "this site cannot write its audit log"}
    assert len(logged(home)) == 1
    assert "has not joined" in knock(resident).body["reason"], "it goes on when there is room again"
    assert len(logged(home)) == 2


def test_a_log_that_was_tampered_with_stops_the_site(home: Path) -> None:
    resident = Resident(home)
    for _ in range(3):
        knock(resident)
    lines = (home / AUDIT_FILE).read_bytes().splitlines(keepends=True)
    (home / AUDIT_FILE).write_bytes(b"".join(lines[:-1]))
    for one in (resident, Resident(home)):
        assert knock(one).body == {"reason": "this site cannot write its audit log"}
    assert (home / AUDIT_FILE).read_bytes() == b"".join(lines[:-1]), "and is left as it was found"


def test_a_site_that_cannot_write_its_log_is_lost_to_the_run_and_trains_nothing(tmp_path: Path) -> None:
    acquaint(tmp_path / "homes", (*SITES, SERVER))
    (tmp_path / "homes" / "site_2" / AUDIT_FILE).unlink()
    (tmp_path / "homes" / "site_2" / AUDIT_FILE).mkdir()
    with pytest.raises(RunFailed, match="site_2: it failed: this site cannot write its audit log"):
        go(tmp_path)
    assert not list((tmp_path / "homes" / "site_2").rglob("contribution-*"))


def test_the_hash_is_that_of_the_frame(home: Path) -> None:
    frame = encode_message(knock(Resident(home)))
    (line,) = logged(home)
    assert (line["sha256"], line["bytes"]) == (hashlib.sha256(frame).hexdigest(), len(frame))

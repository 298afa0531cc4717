"""Logs that show when somebody changed them: every single change is found, a crash is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pppml_core.errors import WireError
from pppml_core.federation.audit import AUDIT_FILE, Audit, by_run, read_audit
from pppml_core.federation.chain import HEAD_SIZE, Chain, ChainBroken, Head, read_chain
from pppml_core.federation.identity import Identity, new_identity
from pppml_core.federation.witnesses import begin_logs
from pppml_core.wire.codec import encode_message
from pppml_core.wire.messages import Message

LINES = 6


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return new_identity(tmp_path)


@pytest.fixture
def path(tmp_path: Path, identity: Identity) -> Path:
    """A log of some lines."""
    chain = Chain(tmp_path / "log.jsonl", identity)
    for number in range(LINES):
        chain.append({"what": f"line {number}", "value": number / 4, "list": ["a", number]})
    return tmp_path / "log.jsonl"


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def first_bad(path: Path, identity: Identity) -> int:
    with pytest.raises(ChainBroken, match=r"line \d+ ") as found:
        read_chain(path, identity.public)
    return int(found.value.message.split()[1])


def test_what_was_written_is_read(path: Path, identity: Identity) -> None:
    entries, head = read_chain(path, identity.public)
    assert [(entry["n"], entry["what"], entry["value"], entry["list"]) for entry in entries] == [
        (number + 1, f"line {number}", number / 4, ["a", number]) for number in range(LINES)
    ]
    assert (head.count, head.bytes) == (LINES, path.stat().st_size)
    assert path.with_name("log.jsonl.head").stat().st_size == HEAD_SIZE
    assert path.stat().st_mode & 0o077 == 0


def test_a_log_that_never_was_is_empty(tmp_path: Path, identity: Identity) -> None:
    assert read_chain(tmp_path / "log.jsonl", identity.public) == ([], Head())
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize("index", range(LINES))
def test_every_byte_of_every_line_counts(path: Path, identity: Identity, index: int) -> None:
    lines = lines_of(path)
    for place in range(0, len(lines[index]), 7):
        changed = bytearray(lines[index])
        changed[place] ^= 1
        path.write_bytes(b"".join([*lines[:index], bytes(changed), *lines[index + 1 :]]))
        # (a byte that becomes a line end makes two lines of one; one that is no line end any more, one of two)
        assert first_bad(path, identity) == index + 1


@pytest.mark.parametrize("index", range(LINES))
def test_a_line_that_is_gone_is_missed(path: Path, identity: Identity, index: int) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:index], *lines[index + 1 :]]))
    assert first_bad(path, identity) == index + 1


@pytest.mark.parametrize("left", range(LINES))
def test_an_end_that_is_cut_off_is_missed(path: Path, identity: Identity, left: int) -> None:
    lines = lines_of(path)
    for part in (b"", lines[left][:20], lines[left][:-1]):
        path.write_bytes(b"".join(lines[:left]) + part)
        assert first_bad(path, identity) == left + 1
        with pytest.raises(ChainBroken, match="missing"):
            Chain(path, identity).append({})


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 4), (4, 5), (0, 5)])
def test_lines_in_another_order(path: Path, identity: Identity, first: int, second: int) -> None:
    lines = lines_of(path)
    lines[first], lines[second] = lines[second], lines[first]
    path.write_bytes(b"".join(lines))
    assert first_bad(path, identity) == first + 1


@pytest.mark.parametrize("index", range(LINES))
def test_a_line_twice(path: Path, identity: Identity, index: int) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[: index + 1], *lines[index:]]))
    assert first_bad(path, identity) == index + 2
    path.write_bytes(b"".join([*lines, lines[index]]))
    assert first_bad(path, identity) == LINES + 1, "at the end, after the head"


@pytest.mark.parametrize("index", range(LINES + 1))
def test_a_line_that_somebody_else_wrote(path: Path, identity: Identity, tmp_path: Path, index: int) -> None:
    lines, stranger = lines_of(path), new_identity(tmp_path / "stranger")
    chain = Chain(tmp_path / "stranger" / "log.jsonl", stranger)
    for number in range(index + 1):
        chain.append({"what": f"line {number}"})
    for text in (lines_of(tmp_path / "stranger" / "log.jsonl")[-1], b"{}\n", b"\n", b"[1]\n", b"[" * 5000 + b"\n", b"\xff\n"):
        path.write_bytes(b"".join([*lines[:index], text, *lines[index:]]))
        assert first_bad(path, identity) == index + 1


def test_a_line_of_another_log_of_this_party(path: Path, identity: Identity, tmp_path: Path) -> None:
    Chain(tmp_path / "other.jsonl", identity).append({"what": "line 0"})
    path.write_bytes(b"".join([*lines_of(tmp_path / "other.jsonl"), *lines_of(path)[1:]]))
    assert first_bad(path, identity) == 1


@pytest.mark.parametrize("how", ["gone", "empty", "changed", "a stranger's", "of fewer lines"])
def test_a_head_that_is_not_the_one_it_was(path: Path, identity: Identity, tmp_path: Path, how: str) -> None:
    head = path.with_name("log.jsonl.head")
    was = head.read_bytes()
    if how == "gone":
        head.unlink()
    elif how == "a stranger's":
        chain = Chain(tmp_path / "stranger" / "log.jsonl", new_identity(tmp_path / "stranger"))
        chain.append({})
        head.write_bytes((tmp_path / "stranger" / "log.jsonl.head").read_bytes())
    else:
        head.write_bytes({"empty": b"", "changed": was.replace(b'"count":6', b'"count":5'), "of fewer lines": b'{"count":0}'}[how])
    with pytest.raises(ChainBroken, match="head of the log"):
        read_chain(path, identity.public)
    with pytest.raises(ChainBroken, match="head of the log"):
        Chain(path, identity).append({})


def test_a_log_and_a_head_of_two_pasts(path: Path, identity: Identity) -> None:
    """A backup was put back and went on otherwise: what both wrote is signed, but one is not the other's."""
    head = path.with_name("log.jsonl.head")
    then = path.read_bytes(), head.read_bytes()
    Chain(path, identity).append({"what": "one"})
    one = path.read_bytes()
    path.write_bytes(then[0])
    head.write_bytes(then[1])
    Chain(path, identity).append({"what": "two"})
    path.write_bytes(one)
    assert first_bad(path, identity) == LINES + 1
    with pytest.raises(ChainBroken, match="not the line that the head stands for"):
        Chain(path, identity).append({})


def test_a_whole_log_that_is_gone(path: Path, identity: Identity) -> None:
    path.unlink()
    assert first_bad(path, identity) == 1
    with pytest.raises(ChainBroken, match="the whole log is gone"):
        Chain(path, identity).append({})


def test_a_log_that_was_written_anew_is_found_out_by_a_noted_head(path: Path, identity: Identity) -> None:
    noted = str(read_chain(path, identity.public)[1])
    Chain(path, identity).append({"what": "more"})
    read_chain(path, identity.public, noted)
    read_chain(path, identity.public, f"  {noted}\n")
    for wrong in ("6 " + "0" * 64, f"9 {noted[2:]}", "", "x"):
        with pytest.raises(ChainBroken, match="noted"):
            read_chain(path, identity.public, wrong)
    path.unlink()
    path.with_name("log.jsonl.head").unlink()
    for number in range(LINES + 1):  # by somebody who has the key
        Chain(path, identity).append({"what": f"another {number}"})
    read_chain(path, identity.public)
    with pytest.raises(ChainBroken, match="line 6 is not the one that was noted"):
        read_chain(path, identity.public, noted)


# -- crashes ------------------------------------------------------------------------------------------------------------------------------


def test_lines_after_the_head_are_those_of_a_crash_and_count(path: Path, identity: Identity) -> None:
    head = path.with_name("log.jsonl.head")
    old = head.read_bytes()
    Chain(path, identity).append({"what": "its head was not written"})
    head.write_bytes(old)
    assert len(read_chain(path, identity.public)[0]) == LINES + 1
    Chain(path, identity).append({"what": "after it"})
    entries, at = read_chain(path, identity.public)
    assert [entry["what"] for entry in entries[LINES:]] == ["its head was not written", "after it"]
    assert at.count == LINES + 2


@pytest.mark.parametrize("part", [1, 40, -1])
def test_an_unfinished_line_after_the_head_is_dropped(path: Path, identity: Identity, part: int) -> None:
    whole = path.read_bytes()
    head = path.with_name("log.jsonl.head").read_bytes()
    Chain(path, identity).append({"what": "it was never finished"})
    path.write_bytes(whole + lines_of(path)[-1][:part])
    path.with_name("log.jsonl.head").write_bytes(head)
    assert len(read_chain(path, identity.public)[0]) == LINES
    Chain(path, identity).append({"what": "after it"})
    assert [entry["what"] for entry in read_chain(path, identity.public)[0][LINES:]] == ["after it"]


def test_a_log_that_a_crash_left_unmade(tmp_path: Path, identity: Identity) -> None:
    Chain(tmp_path / "log.jsonl", identity).append({})
    for file in ("log.jsonl", "log.jsonl.head"):
        (tmp_path / file).unlink()
    with Chain(tmp_path / "log.jsonl", identity).opened():
        pass
    (tmp_path / "log.jsonl").unlink()  # its head was there first
    assert read_chain(tmp_path / "log.jsonl", identity.public) == ([], Head())
    Chain(tmp_path / "log.jsonl", identity).append({"what": "the first"})
    assert len(read_chain(tmp_path / "log.jsonl", identity.public)[0]) == 1


WRITER = """
import sys
from pathlib import Path
from pppml_core.federation.chain import Chain
from pppml_core.federation.identity import load_identity
chain = Chain(Path(sys.argv[1]) / "log.jsonl", load_identity(Path(sys.argv[1])))
number = 0
while True:
    chain.append({"writer": sys.argv[2], "number": number})
    print(number, flush=True)
    number += 1
"""


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path, identity: Identity) -> None:
    """Two at a time, killed again and again: each line that `append` returned from is there, and the log is in order."""
    acknowledged: dict[str, int] = {}
    for turn in range(4):
        writers = {
            f"{turn}-{which}": subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), f"{turn}-{which}"], stdout=subprocess.PIPE, text=True
            )
            for which in "ab"
        }
        for writer in writers.values():
            assert writer.stdout is not None
            writer.stdout.readline()  # it has begun
        time.sleep(0.03 * (turn + 1))
        for name, writer in writers.items():
            writer.send_signal(signal.SIGKILL)
            said = writer.communicate()[0].split()
            acknowledged[name] = int(said[-1]) if said else 0
    entries, _ = read_chain(tmp_path / "log.jsonl", identity.public)
    for name, last in acknowledged.items():
        numbers = [entry["number"] for entry in entries if entry["writer"] == name]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) - 1 >= last, name
    Chain(tmp_path / "log.jsonl", identity).append({"writer": "after"})
    assert len(read_chain(tmp_path / "log.jsonl", identity.public)[0]) == len(entries) + 1


def test_a_line_that_cannot_be_synced_is_taken_back(path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(path, identity)
    chain.append({"what": "before"})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            chain.append({"what": "no room"})
    chain.append({"what": "after"})
    assert [entry["what"] for entry in read_chain(path, identity.public)[0][LINES:]] == ["before", "after"]


def test_a_line_is_on_the_disk_before_append_returns_and_the_head_after_it(
    path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(path, identity)
    chain.append({"what": "before"})
    happened: list[str] = []
    sync, write = os.fsync, os.pwrite
    name: Callable[[int], str] = lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")).name  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda descriptor: happened.append(f"sync {name(descriptor)}") or sync(descriptor))
    monkeypatch.setattr(os, "pwrite", lambda d, *rest: happened.append(f"write {name(d)}") or write(d, *rest))
    chain.append({"what": "now"})
    assert happened == ["sync log.jsonl", "write log.jsonl.head"]


def test_a_line_that_is_too_long(path: Path, identity: Identity) -> None:
    with pytest.raises(WireError, match="does not fit the log"):
        Chain(path, identity).append({"what": "x" * 40_000})
    assert len(read_chain(path, identity.public)[0]) == LINES


# -- the audit log ------------------------------------------------------------------------------------------------------------------------


def test_what_the_audit_log_says_of_a_message(tmp_path: Path, identity: Identity) -> None:
    begin_logs(tmp_path, identity)
    audit = Audit(tmp_path, identity)
    frame = encode_message(Message(b"r" * 16, 2, 3, "reply", "evaluate", "a", "server", {"scores": {"x": 1.0}, "needs_weights": False}))
    audit.note(frame)
    audit.note(encode_message(Message(b"s" * 16, 1, 1, "refused", "open", "a", "server", {"reason": "min_cohort: two"})), {"x": 1})
    lines, head = read_audit(tmp_path, identity.public)
    told = {name: lines[0][name] for name in ("run", "round", "attempt", "stage", "kind", "to", "bytes", "fields")}
    stage = {"round": 2, "attempt": 3, "stage": "evaluate", "kind": "reply", "to": "server"}
    assert told == {"run": "72" * 16, **stage, "bytes": len(frame), "fields": ["needs_weights", "scores"]}
    assert (lines[1]["reason"], lines[1]["about"], head.count) == ("min_cohort: two", {"x": 1}, 2)
    assert [(run["messages"], run["kinds"]) for run in by_run(lines)] == [(1, {"evaluate": 1}), (1, {"refused": 1})]


def test_a_home_has_a_log_from_its_first_day(tmp_path: Path, identity: Identity) -> None:
    begin_logs(tmp_path, identity)
    Audit(tmp_path, identity)
    begin_logs(tmp_path, identity)
    Audit(tmp_path, identity)
    for file in (AUDIT_FILE, f"{AUDIT_FILE}.head"):
        (tmp_path / file).unlink()
    for look in (lambda: Audit(tmp_path, identity), lambda: read_audit(tmp_path, identity.public)):
        with pytest.raises(ChainBroken, match="line 1 is missing"):
            look()


def test_a_long_message_fits_the_log(tmp_path: Path, identity: Identity) -> None:
    body = {f"{'name' * 200}{number:04d}": number for number in range(3000)}
    begin_logs(tmp_path, identity)
    Audit(tmp_path, identity).note(encode_message(Message(b"r" * 16, 1, 1, "reply", "s", "a", "server", body)))
    (line,) = read_audit(tmp_path, identity.public)[0]
    assert len(json.dumps(line)) < 20_000

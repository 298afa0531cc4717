import errno
import hashlib
import json
import os

import pytest

from pppml_core.errors import CheckpointError, DataError, RunFailed
from pppml_core.wire.codec import encode_message
from pppml_core.wire.messages import Message
from pppml_core.wire.transcript import Transcript, read_payload, read_transcript


def message(sender="a", recipient="server", stage="share", round=1, body=None):
    return Message(bytes(16), round, 1, "session", stage, sender, recipient, body or {"x": 1})


def fill(transcript, count=3):
    for i in range(count):
        m = message(body={"x": i})
        transcript.append(m, encode_message(m))


def test_a_direct_hop(tmp_path):
    m = message()
    frame = encode_message(m)
    with Transcript(tmp_path, payloads=False) as transcript:
        transcript.append(m, frame)
    (hop,) = read_transcript(tmp_path)
    assert (hop.round, hop.attempt, hop.kind, hop.stage, hop.sender, hop.recipient) == (1, 1, "session", "share", "a", "server")
    assert (hop.origin, hop.final, hop.carrier) == ("a", "server", ())
    assert hop.size == len(frame)
    assert hop.sha256 == hashlib.sha256(frame).hexdigest()
    assert hop.time > 1.7e9
    assert not (tmp_path / "transcripts" / "payloads").exists()
    line = json.loads((tmp_path / "transcripts" / "hops.jsonl").read_text())
    assert line["sender"] == "a"


def test_a_star_relay_has_two_hops_and_one_payload(tmp_path):
    m = message("a", "b")
    frame = encode_message(m)
    with Transcript(tmp_path, payloads=True) as transcript:
        transcript.append(m, frame, carrier=("server",))
        (payload,) = (tmp_path / "transcripts" / "payloads").iterdir()
        written = payload.stat().st_ino
        transcript.append(m, frame)
        assert payload.stat().st_ino == written, "written once"
        assert (transcript.total("up"), transcript.total("down"), transcript.total()) == (2 * len(frame), 2 * len(frame), 3 * len(frame))
    hops = read_transcript(tmp_path)
    assert [(h.sender, h.recipient, h.origin, h.final, h.carrier) for h in hops] == [
        ("a", "server", "a", "b", ("server",)),
        ("server", "b", "a", "b", ("server",)),
        ("a", "b", "a", "b", ()),
    ]
    assert list(payload.parent.iterdir()) == [payload]
    assert payload.name == f"{hops[0].sha256}.bin"
    assert read_payload(tmp_path, hops[0].sha256) == frame


def test_totals_by_direction_and_stage(tmp_path):
    with Transcript(tmp_path, payloads=False) as transcript:
        for sender, recipient, stage, size in [("server", "a", "open", 10), ("server", "b", "open", 20), ("a", "server", "share", 5)]:
            transcript.append(message(sender, recipient, stage), bytes(size))
        assert (transcript.total("up"), transcript.total("down"), transcript.total()) == (5, 30, 35)
        assert (transcript.total("up", "open"), transcript.total("down", "open"), transcript.total(stage="share")) == (0, 30, 5)
        assert transcript.total("up", "unknown") == 0
        assert transcript.by_stage() == {"open": 30, "share": 5}
    with Transcript(tmp_path, payloads=False) as again:
        assert again.by_stage() == {"open": 30, "share": 5}


def test_truncate_goes_back_to_a_checkpoint(tmp_path):
    with Transcript(tmp_path, payloads=False) as transcript:
        fill(transcript, 2)
        length, total = transcript.length(), transcript.total()
        fill(transcript, 3)
        transcript.truncate(length)
        assert (transcript.length(), transcript.total()) == (length, total)
        fill(transcript, 1)
        assert len(read_transcript(tmp_path)) == 3
        transcript.truncate(0)
        assert (read_transcript(tmp_path), transcript.total()) == ([], 0)


def test_a_truncation_that_does_not_fit_is_refused(tmp_path):
    with Transcript(tmp_path, payloads=False) as transcript:
        fill(transcript)
        length = transcript.length()
        for wrong in (length + 1, length - 1, 1):
            with pytest.raises(CheckpointError, match="no line that ends"):
                transcript.truncate(wrong)
        assert transcript.length() == length


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path):
    with Transcript(tmp_path, payloads=False) as transcript:
        fill(transcript, 2)
        whole = transcript.length()
        fill(transcript, 1)
    path = tmp_path / "transcripts" / "hops.jsonl"
    data = path.read_bytes()
    for end in range(whole, len(data)):
        path.write_bytes(data[:end])
        assert len(read_transcript(tmp_path)) == 2
        with Transcript(tmp_path, payloads=False) as again:
            assert again.length() == whole == path.stat().st_size


def test_a_damaged_line_in_the_middle_names_its_place(tmp_path):
    with Transcript(tmp_path, payloads=False) as transcript:
        fill(transcript)
    path = tmp_path / "transcripts" / "hops.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"{}\n", b"garbage\n", b"[1]\n", b"\n", b"\xff\n"):
        path.write_bytes(lines[0] + damage + lines[2])
        with pytest.raises(DataError) as caught:
            read_transcript(tmp_path)
        assert caught.value.place.endswith("hops.jsonl:2")
        with pytest.raises(DataError):
            Transcript(tmp_path, payloads=False)


def test_a_full_disk_leaves_the_transcript_as_it_was(tmp_path, monkeypatch):
    with Transcript(tmp_path, payloads=False) as transcript:
        fill(transcript, 2)
        length, total = transcript.length(), transcript.total()
        write = os.write

        def half_then_full(file, data):
            if len(data) > 100:
                return write(file, bytes(data)[:50])
            raise OSError(errno.ENOSPC, "No space left on device")

        m = message()
        monkeypatch.setattr(os, "write", half_then_full)
        with pytest.raises(RunFailed, match="No space left") as caught:
            transcript.append(m, encode_message(m))
        assert caught.value.hint == "make room and resume"
        monkeypatch.undo()
        assert (transcript.length(), transcript.total()) == (length, total)
        fill(transcript, 1)
    assert len(read_transcript(tmp_path)) == 3


def test_missing_and_changed_files(tmp_path):
    with pytest.raises(DataError, match="no transcript"):
        read_transcript(tmp_path)
    with Transcript(tmp_path, payloads=True) as transcript:
        fill(transcript, 1)
    sha256 = read_transcript(tmp_path)[0].sha256
    path = tmp_path / "transcripts" / "payloads" / f"{sha256}.bin"
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(DataError, match="does not have the hash"):
        read_payload(tmp_path, sha256)
    path.unlink()
    with pytest.raises(DataError, match="not kept"):
        read_payload(tmp_path, sha256)

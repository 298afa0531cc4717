"""The log of a site: what its people see while it works, and what is not in it."""

import json
import re
import sys

import pytest

from pppml_core.api import Experiment
from pppml_core.discovery import from_objects
from pppml_core.errors import RunFailed
from pppml_core.federation.resident import Resident
from pppml_core.federation.site_log import LOG_FILE, OLDER, SIZE, SiteLog
from pppml_core.registry import Registry
from pppml_core.testing.policies import insist
from pppml_core.testing.residents import ENGINE

LINE = {"time": "t", "run": "ab" * 16, "round": 2, "attempt": 1, "stage": "contribute", "kind": "reply", "to": "server", "bytes": 900}


def lines(home):
    return [json.loads(line) for line in (home / LOG_FILE).read_text().splitlines()]


@pytest.fixture
def federation(tmp_path):
    """A run over residents that live in ``homes/<site>``."""
    registry = Registry.only(*from_objects([ENGINE]))

    def run(name="a", **sections):
        made = Experiment(
            {
                "task": {"use": "tiny", "sites": 3, "examples": 20},
                "run": {"rounds": 2, "seed": 1, "name": name},
                "training": {"steps": 1, "batch_size": 4},
                "reporters": [],
                "engine": {"use": "residents", "homes": str(tmp_path / "homes")},
                **sections,
            },
            registry=registry,
        )
        return made.run(tmp_path / name, report=False)

    return run


def test_a_run_as_its_site_sees_it(federation, tmp_path):
    run = federation()
    home = tmp_path / "homes" / "site_2"
    told = lines(home)
    audit = [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]
    messages = [line for line in told if line["event"] != "started"]
    assert [line["event"] for line in messages] == ["joined"] + ["answered"] * (len(messages) - 1)
    sent = [line for line in audit if "kind" in line]
    assert [(m["round"], m["stage"], m["sent"]) for m in messages] == [(a["round"], a["stage"], a["bytes"]) for a in sent]
    run_id = (run.folder / "run.id").read_text()
    for line in messages:
        assert line["level"] == "info"
        assert line["run"] == run_id
        assert line["seconds"] >= 0
        assert line["received"] > 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    assert [line["event"] for line in told].count("started") == 1


def test_a_refusal_is_a_warning_with_its_reason_and_no_path(federation, tmp_path):
    federation()
    home = tmp_path / "homes" / "site_1"
    insist(home, "min_cohort: 5")
    with pytest.raises(RunFailed, match="site_1"):
        federation("b")
    refused = lines(home)[-1]
    assert (refused["level"], refused["event"], refused["stage"]) == ("warning", "refused", "join")
    assert "min_cohort" in refused["reason"]
    for site in ("site_1", "site_2"):
        text = (tmp_path / "homes" / site / LOG_FILE).read_text()
        assert str(tmp_path) not in text
        assert "identity.key" not in text
        secret = (tmp_path / "homes" / site / "identity.key").read_bytes()
        assert secret.hex() not in text


def test_what_cannot_be_read_is_an_error_of_nobody(federation, tmp_path):
    federation()
    home = tmp_path / "homes" / "site_3"
    Resident(home).receive(b"\x00 no message")
    assert (lines(home)[-1]["level"], lines(home)[-1]["event"], lines(home)[-1]["count"]) == ("warning", "turned-away", 1)


def test_where_the_audit_log_cannot_be_written_it_says_so(federation, tmp_path):
    federation()
    home = tmp_path / "homes" / "site_3"
    (home / "audit.jsonl").write_text("{}\n")
    Resident(home).receive(b"\x00 no message")
    assert (lines(home)[-1]["event"], lines(home)[-1]["level"]) == ("audit-unwritable", "error")
    assert set(lines(home)[-1]) == {"time", "level", "event", "reason"}


def test_the_log_is_bounded(tmp_path):
    log = SiteLog(tmp_path, size=2000, older=2)
    for number in range(200):
        log.answered({**LINE, "round": number}, 10, 0.5)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [LOG_FILE, f"{LOG_FILE}.1", f"{LOG_FILE}.2"]
    assert all((tmp_path / name).stat().st_size <= 2000 for name in files)
    assert lines(tmp_path)[-1]["round"] == 199
    kept = [json.loads(line)["round"] for name in reversed(files) for line in (tmp_path / name).read_text().splitlines()]
    assert kept == list(range(kept[0], 200))
    assert SIZE * (OLDER + 1) == 20_000_000


def test_a_hostile_text_is_one_short_line(tmp_path):
    SiteLog(tmp_path).answered({**LINE, "kind": "failed", "stage": "x" * 10_000, "reason": 'a\n{"event": "joined"}\u2028\ud800'}, 10, 0.5)
    (line,) = lines(tmp_path)
    assert len(line["stage"]) == 600
    assert line["event"] == "failed"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_does_not_stop_the_site(tmp_path, capfd):
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    SiteLog(tmp_path).answered(LINE, 10, 0.5)
    assert "No space left on device" in capfd.readouterr().err

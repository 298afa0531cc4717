"""``pppml site check|run|audit|show``: what a hospital's people see before, while and after a run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from pppml_core import cli
from pppml_core.api import Experiment
from pppml_core.discovery import from_objects
from pppml_core.federation.identity import load_identity
from pppml_core.federation.site_ledger import Account, Claim, Limits
from pppml_core.interfaces.engine import Engine
from pppml_core.registry import Registry
from pppml_core.testing.policies import insist
from pppml_core.testing.residents import ENGINE, acquaint

Go = Callable[..., tuple[int, str, str]]
CONFIG = "task: tiny\nrun: {rounds: 1, metrics: none}\ntraining: {steps: 1}\n"


@pytest.fixture
def pppml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Go:
    """`pppml(line)`: a command in this process, in an empty folder; exit code and texts."""
    monkeypatch.chdir(tmp_path)

    def go(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(line))
        text = capsys.readouterr()
        return int(ended.value.code or 0), text.out, text.err

    return go


@pytest.fixture
def home(tmp_path: Path) -> Path:
    acquaint(tmp_path, ("site_1", "site_2", "site_3", "server"))
    (tmp_path / "study.yaml").write_text(CONFIG)
    return tmp_path / "site_1"


def rows(text: str) -> dict[str, tuple[str, str]]:
    """What was looked at -> (ok or NO, what is said of it)."""
    found = re.findall(r"^(ok|NO)  ([a-z_.]+(?: log)?)(?: +(.*))?$", text, re.MULTILINE)
    return {what: (mark, says) for mark, what, says in found}


def test_a_home_in_order(pppml: Go, home: Path) -> None:
    code, out, err = pppml("site check --home site_1")
    assert (code, err) == (0, "")
    said = rows(out)
    assert list(said) == ["identity", "roster", "policy", "site.yaml", "account", "audit log", "witnesses"]
    assert {mark for mark, _ in said.values()} == {"ok"}
    assert said["policy"][1].startswith("every rule stands in it; null, so nothing is asked: ")
    assert said["roster"][1] == "3 other parties pinned: server, site_2, site_3"


@pytest.mark.parametrize(
    ("spoil", "what", "says"),
    [
        (lambda home: (home / "identity.key").chmod(0o644), "identity", "can be read by others"),
        (lambda home: (home / "roster.json").unlink(), "roster", "no coordinator is pinned"),
        (lambda home: (home / "policy.yaml").write_text("min_cohrt: 3"), "policy", "did you mean 'min_cohort'"),
        (lambda home: (home / "policy.yaml").write_text(""), "policy", "restore policy.yaml"),
        (lambda home: (home / "policy.yaml").write_text("min_cohort: 3"), "policy", "rules plain_updates, max_colluders, min_honest, "),
        (lambda home: (home / "policy.yaml").unlink(), "policy", "restore policy.yaml"),
        (lambda home: (home / "site.yaml").write_text("data: /nowhere\n"), "site.yaml", "there is nothing at /nowhere"),
        (lambda home: (home / "site.yaml").write_text("engine: nobodys\n"), "site.yaml", "there is no engine 'nobodys'"),
        (lambda home: (home / "account.jsonl").unlink(), "account", "the account of what runs cost here is gone"),
        (lambda home: (home / "audit.jsonl").unlink(), "audit log", "the log of what left this home is gone"),
    ],
)
def test_a_home_that_is_not_in_order(pppml: Go, home: Path, spoil: Callable[[Path], object], what: str, says: str) -> None:
    spoil(home)
    code, out, _ = pppml("site check --home site_1")
    assert code == 2
    mark, told = rows(out)[what]
    assert (mark, says in told) == ("NO", True), told


def test_what_this_site_would_say_to_a_run(pppml: Go, home: Path) -> None:
    insist(home, "plain_updates: false\nmin_cohort: 4\nhours: '00:00-23:59'")
    code, out, _ = pppml("site check --home site_1 study.yaml")
    assert code == 2
    said = rows(out)
    assert {what for what, (mark, _) in said.items() if mark == "NO"} == {"plain_updates", "min_cohort"}
    assert said["min_cohort"][1] == "refused: 3 sites announced, at least 4 required"
    assert said["vet_weights"] == ("ok", "held in every round")
    insist(home)
    code, out, _ = pppml("site check --home site_1 study.yaml")
    assert code == 0
    assert "training examples here: 24" in out
    assert {mark for mark, _ in rows(out).values()} == {"ok"}
    assert not (home / "runs").exists(), "nothing was begun"


def test_a_run_whose_data_are_at_their_sites(pppml: Go, home: Path) -> None:
    for own, wrong in ((24, set()), (23, {"examples"})):
        (home.parent / "study.yaml").write_text(f"{CONFIG}sites: {{site_1: {own}, site_2: 25, site_3: 26}}\n")
        _, out, _ = pppml("site check --home site_1 study.yaml")
        assert {what for what, (mark, _) in rows(out).items() if mark == "NO"} == wrong
        assert "training examples here: 24" in out


def test_what_it_prints_can_be_pinned(pppml: Go, home: Path) -> None:
    _, out, _ = pppml("site check --home site_1 study.yaml")
    pins = out[out.index("models:") :]
    insist(home, pins)
    code, out, _ = pppml("site check --home site_1 study.yaml")
    assert (code, rows(out)["code"][0], rows(out)["models"][0]) == (0, "ok", "ok")
    (home.parent / "study.yaml").write_text(CONFIG + "model: {use: tiny-net, width: 3}\n")
    code, out, _ = pppml("site check --home site_1 study.yaml --json")
    refused = [row["what"] for row in json.loads(out)["rows"] if not row["ok"]]
    assert (code, refused) == (2, ["models"])


def test_code_that_may_not_run_is_not_run_to_look_at_it(pppml: Go, home: Path) -> None:
    (home.parent / "evil_net.py").write_text("from pathlib import Path\nPath('was-here').touch()\nNet = None\n")
    (home.parent / "study.yaml").write_text(CONFIG + "model: evil_net:Net\n")
    code, out, _ = pppml("site check --home site_1 study.yaml")
    assert code == 2
    assert rows(out)["python"] == ("NO", "refused: evil_net:Net is no component of a plugin, and is not listed here")
    assert "models: [not built]" in out
    assert not (home.parent / "was-here").exists()


def test_a_site_serves_with_the_engine_of_its_file(pppml: Go, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = pppml("site run --home site_1")
    assert (code, "no engine is named" in err) == (2, True)
    (home / "site.yaml").write_text("engine: local\n")
    code, _, err = pppml("site run --home site_1")
    assert (code, "the engine local starts its sites itself" in err) == (2, True)
    served = []
    monkeypatch.setattr(Engine, "serve", lambda self, folder: served.append(folder) or 7)
    code, out, _ = pppml("site run --home site_1")
    assert (code, [str(folder) for folder in served]) == (7, ["site_1"])
    assert "site_1 serves" in out
    (home / "policy.yaml").write_text("min_cohrt: 3\n")
    assert pppml("site run --home site_1")[0] == 2, "before anybody is reached"
    assert len(served) == 1


def test_audit_sums_up_and_finds_what_was_changed(pppml: Go, home: Path) -> None:
    config = {"task": "tiny", "training": {"steps": 1}, "run": {"rounds": 1}, "engine": {"use": "residents", "homes": str(home.parent)}}
    Experiment(config, registry=Registry.only(*from_objects([ENGINE]))).run(home.parent / "r", reporters=False, report=False)
    code, out, err = pppml("site audit --home site_1")
    assert (code, err) == (0, "")
    assert "1 join, 1 hello, 1 open, 1 contribute" in " ".join(out.split())
    head = out.strip().splitlines()[-1]
    assert re.fullmatch(r"\d+ [0-9a-f]{64}", head)
    assert pppml(f"site audit --home site_1 --head '{head}'")[0] == 0
    code, _, err = pppml(f"site audit --home site_1 --head '{head[:-1]}x'")
    assert (code, "is not the one that was noted" in err) == (1, True)
    assert len(json.loads(pppml("site audit --home site_1 --json")[1])["lines"]) == int(head.split()[0])
    log = home / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"stage":"hello"', b'"stage":"jello"'))
    code, out, err = pppml("site audit --home site_1")
    assert (code, out) == (1, "")
    assert "audit.jsonl: line 2 was changed" in err


def test_show_prints_the_account(pppml: Go, home: Path) -> None:
    assert json.loads(pppml("site show --home site_1 --json")[1])["account"]["runs"] == []
    account = Account(home, load_identity(home))
    for number, unit in enumerate(("example", "example", "patient")):
        claim = Claim(1.5 + number, 1e-5, unit, "add-remove")
        account.reserve(bytes([number]) * 16, claim, Limits(), {"name": f"study-{number}"})
        _, out, _ = pppml("site show --home site_1")
        assert re.search(rf"study-{number} +{1.5 + number} +1e-05 +{unit}", out)
        if number == 1:
            assert "2 runs, together epsilon 4 and delta 2e-05" in out
    assert "cannot be added" in out


def test_every_command_teaches(pppml: Go) -> None:
    for name in ("init", "show", "trust", "check", "run", "audit"):
        code, out, _ = pppml(f"site {name} --help")
        assert code == 0
        assert "pppml site" in out
        assert len(out) > 300

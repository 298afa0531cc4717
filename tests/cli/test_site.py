"""``pppml site``: what a person at a hospital types, what is refused, and that a secret is never shown."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml

from pppml_core import cli
from pppml_core.federation.home import policy_template
from pppml_core.federation.identity import fingerprint, load_identity, load_roster
from pppml_core.federation.policy import Policy, load_policy
from pppml_core.testing.policies import insist

PAGE = Path(__file__).resolve().parents[2] / "docs" / "identities.md"

Go = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pppml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Go:
    """`pppml(line, answer=...)`: a command in this process, in an empty folder; exit code and texts. No answer: nobody is there."""
    monkeypatch.chdir(tmp_path)

    def go(line: str, answer: bool | None = None) -> tuple[int, str, str]:
        def confirm(text: str) -> bool:
            if answer is None:
                raise click.Abort
            return answer

        monkeypatch.setattr(click, "confirm", confirm)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(line))
        text = capsys.readouterr()
        return int(ended.value.code or 0), text.out, text.err

    return go


def test_init_makes_a_home(pppml: Go, tmp_path: Path) -> None:
    code, out, err = pppml("site init --home a --name clinic_a")
    assert (code, err) == (0, "")
    public = load_identity(tmp_path / "a").public
    assert fingerprint(public) in out
    assert (tmp_path / "a/identity.pub").read_text() == f"clinic_a {base64.b64encode(public).decode()}\n"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert load_roster(tmp_path / "a") == {"clinic_a": public}, "a party pins itself, so nobody else can be pinned under its name"
    policy = load_policy(tmp_path / "a")
    assert (policy.min_cohort, policy.plain_updates, policy.metrics, policy.fewest_patients) == (3, False, "sum", 10), "a hospital's"


def test_init_keeps_what_is_there(pppml: Go, tmp_path: Path) -> None:
    pppml("site init --home a --name clinic_a")
    key = (tmp_path / "a/identity.key").read_bytes()
    code, _, err = pppml("site init --home a --name clinic_a")
    assert code == 2
    assert "there is a home already" in err
    # Interrupted after the key was made: the same call finishes it, with the same key and the edited policy.
    (tmp_path / "a/identity.pub").unlink()
    insist(tmp_path / "a", "min_cohort: 4", careful=True)
    code, _, err = pppml("site show --home a")
    assert code == 2
    assert "the home is not finished" in err
    assert pppml("site init --home a --name clinic_b")[0] == 2, "the name was settled before"
    assert pppml("site init --home a --name clinic_a")[0] == 0
    assert (tmp_path / "a/identity.key").read_bytes() == key
    assert load_policy(tmp_path / "a").min_cohort == 4


@pytest.mark.parametrize("name", ["Clinic", "clinic-a", "a/b", ""])
def test_init_refuses_what_is_no_slug_and_makes_nothing(pppml: Go, tmp_path: Path, name: str) -> None:
    code, _, err = pppml(f"site init --home a --name '{name}'")
    assert code == 2
    assert "small letters, digits and _" in err
    assert not (tmp_path / "a").exists()


def test_the_coordinator_has_no_policy(pppml: Go, tmp_path: Path) -> None:
    code, out, _ = pppml("site init --home c --name server")
    assert code == 0
    assert not (tmp_path / "c/policy.yaml").exists()
    assert "policy" not in out


@pytest.mark.parametrize("careful", [False, True])
def test_the_template_of_a_policy_names_every_rule(tmp_path: Path, careful: bool) -> None:
    text = policy_template(careful=careful)
    (tmp_path / "policy.yaml").write_text(text)
    held = load_policy(tmp_path)
    choices = {name: field.json_schema_extra["careful"] for name, field in Policy.model_fields.items()}
    in_force = {name: value for name, value in choices.items() if value is not None}
    assert held.model_dump() == Policy(**(in_force if careful else {})).model_dump()
    assert held.model_fields_set == set(Policy.model_fields) - (set() if careful else {"max_colluders"})
    may_be_null = {name for name, field in Policy.model_fields.items() if field.default is None}
    assert may_be_null == set(Policy.model_fields) - set(in_force), "what no hospital can do without has a value"
    shown = yaml.safe_load("\n".join(re.findall(r"^# for example (.*)$", text, re.MULTILINE)))
    assert set(shown) == may_be_null
    insist(tmp_path, yaml.safe_dump(shown), careful=careful)
    assert load_policy(tmp_path).model_dump(mode="json", exclude_none=True, include=set(shown)) == shown, "what is shown can stand there"


def test_show_prints_who_this_is_and_whom_it_trusts(pppml: Go, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pppml(f"site init --home {name} --name clinic_{name}")
    assert pppml("site trust --home a clinic_b b/identity.pub --yes")[0] == 0
    keys = {name: load_identity(tmp_path / name).public for name in "ab"}
    code, out, _ = pppml("site show --home a --json")
    assert code == 0
    shown = json.loads(out)
    assert (shown["name"], shown["fingerprint"]) == ("clinic_a", fingerprint(keys["a"]))
    assert {name: base64.b64decode(key["public"]) for name, key in shown["pinned"].items()} == {
        "clinic_a": keys["a"],
        "clinic_b": keys["b"],
    }
    _, table, _ = pppml("site show --home a")
    assert re.search(rf"^clinic_b +{fingerprint(keys['b'])} *$", table, re.MULTILINE)
    assert re.search(rf"^clinic_a +{fingerprint(keys['a'])} +this party *$", table, re.MULTILINE)


def test_trust_asks_and_believes_a_no(pppml: Go, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pppml(f"site init --home {name} --name clinic_{name}")
    right = fingerprint(load_identity(tmp_path / "b").public)
    for answer in (None, False):
        code, out, err = pppml("site trust --home a clinic_b b/identity.pub", answer)
        assert code == 2
        assert right in out, "shown before it is asked"
        assert "nothing was pinned" in err
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    for told in (wrong, right[:-5], "", right + " 0000"):
        code, _, err = pppml(f'site trust --home a clinic_b b/identity.pub --fingerprint "{told}"', True)
        assert code == 2
        assert "the fingerprint of this key is another one" in err
    assert "clinic_b" not in load_roster(tmp_path / "a")
    assert pppml("site trust --home a clinic_b b/identity.pub", True)[0] == 0
    assert "clinic_b" in load_roster(tmp_path / "a")


@pytest.mark.parametrize("grouping", [str, lambda text: text.replace(" ", ""), lambda text: text.replace(" ", ":").upper()])
def test_a_fingerprint_is_read_in_any_grouping(pppml: Go, tmp_path: Path, grouping: Callable[[str], str]) -> None:
    for name in ("a", "b"):
        pppml(f"site init --home {name} --name clinic_{name}")
    public = load_identity(tmp_path / "b").public
    key = base64.b64encode(public).decode()
    assert pppml(f'site trust --home a clinic_b {key} --fingerprint "{grouping(fingerprint(public))}"')[0] == 0
    assert load_roster(tmp_path / "a")["clinic_b"] == public


def test_trust_replaces_nothing(pppml: Go, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        pppml(f"site init --home {name} --name clinic_{name}")
    pppml("site trust --home a clinic_b b/identity.pub --yes")
    before = (tmp_path / "a/roster.json").read_bytes()
    new = base64.b64encode(load_identity(tmp_path / "c").public).decode()
    for line, says in {
        f"clinic_b {new}": "another identity is pinned for clinic_b",
        f"clinic_a {new}": "another identity is pinned for clinic_a",
        "clinic_d b/identity.pub": "this is the card of clinic_b, not of clinic_d",
        f"clinic_d {(tmp_path / 'b/identity.pub').read_text().split()[1]}": "this identity is pinned as clinic_b already",
        f"Clinic {new}": "is no name of a party",
        "clinic_d b/identity.key": "no public identity is here",
        "clinic_d nowhere.pub": "no public identity is here",
        f"clinic_d {base64.b64encode(bytes(32)).decode()}": "no public identity",
    }.items():
        code, _, err = pppml(f"site trust --home a {line} --yes")
        assert code == 2, line
        assert says in err, line
        assert (tmp_path / "a/roster.json").read_bytes() == before, line
    assert pppml("site trust --home nobody clinic_b b/identity.pub --yes")[0] == 2, "no home, nothing to pin in"
    assert not (tmp_path / "nobody").exists()


def test_an_exchanged_card_is_found_out(pppml: Go, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pppml(f"site init --home {name} --name clinic_{name}")
    (tmp_path / "a/identity.pub").write_bytes((tmp_path / "b/identity.pub").read_bytes())
    code, _, err = pppml("site show --home a")
    assert code == 2
    assert "not the card of the identity beside it" in err


def test_no_command_prints_the_secret(pppml: Go, tmp_path: Path) -> None:
    lines = [
        "init --home a --name clinic_a",
        "init --home b --name clinic_b",
        "show --home a",
        "show --home a --json",
        "trust --home a clinic_b b/identity.pub --yes",
        "trust --home a x a/identity.key",
    ]
    said = ["".join(map(str, pppml(f"site {line}"))) for line in lines]
    (tmp_path / "a/identity.key").chmod(0o644)
    said.append("".join(map(str, pppml("site show --home a"))))
    assert "can be read by others" in said[-1]
    secret = (tmp_path / "a/identity.key").read_bytes()
    for text in said:
        assert secret.hex() not in text.lower()
        assert base64.b64encode(secret).decode() not in text
        assert repr(secret)[2:-1] not in text


def test_the_page_does_what_it_says(pppml: Go, tmp_path: Path) -> None:
    text = PAGE.read_text()
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for line in block.splitlines()]
    for line in lines:
        code, _, err = pppml(line.removeprefix("pppml "), True)
        assert code == 0, f"{line}: {err}"
    rosters = {home: load_roster(tmp_path / home) for home in ("north", "south", "east", "coordinator")}
    assert all(set(roster) == {"clinic_north", "clinic_south", "clinic_east", "server"} for roster in rosters.values())
    assert len({json.dumps({k: v.hex() for k, v in sorted(roster.items())}) for roster in rosters.values()}) == 1, "all trust the same keys"
    (policy,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    insist(tmp_path, policy, careful=True)
    assert load_policy(tmp_path).model_dump(include=yaml.safe_load(policy).keys()) == yaml.safe_load(policy)

"""Rosters from which a key was taken, or in which it was replaced; homes as `pppml site init` and `trust` would have made them."""

from __future__ import annotations

import json

import pytest
from drilling.runs import disturbed, tiny, wrong_sums
from drilling.table import REVOKED, Ends, drills

from pppml_core.errors import ConfigError
from pppml_core.federation.identity import ROSTER_FILE, load_identity, new_identity, provision

PARTIES = ("site_1", "site_2", "site_3", "server")


def edited(home, change):
    path = home / ROSTER_FILE
    roster = json.loads(path.read_text())
    change(roster)
    path.write_text(json.dumps(roster))


@pytest.fixture
def homes(tmp_path):
    provision(tmp_path / "homes", PARTIES)
    return tmp_path / "homes"


def sections(homes):
    return tiny(3, 1, engine={"use": "processes", "homes": str(homes)})


@pytest.mark.drill
def test_a_key_is_gone_from_the_servers_roster(note, homes, tmp_path):
    (row,) = [row for row in drills("processes", "plain", REVOKED) if row.ends is Ends.REFUSED]
    edited(homes / "server", lambda roster: roster.pop("site_2"))
    with pytest.raises(ConfigError) as caught:
        disturbed(tmp_path / "r", sections(homes))
    assert "pppml site trust" in caught.value.hint
    assert not list((tmp_path / "r").rglob("contribution-*"))
    assert not note(row, Ends.REFUSED, [str(caught.value)])


@pytest.mark.drill
@pytest.mark.parametrize("row", [row for row in drills("processes", "plain", REVOKED) if row.ends is Ends.LEFT_OUT], ids=lambda r: r.moment)
def test_sites_that_do_not_know_a_key_take_no_part(note, homes, tmp_path, row):
    """A site counts identities for itself: where its roster is not that of the server, it does not train for it."""
    if "gone" in row.moment:
        edited(homes / "site_1", lambda roster: roster.pop("site_2"))
        refusing = ["site_1"]
    else:
        (homes / "site_2" / "identity.key").unlink()
        made = new_identity(homes / "site_2")
        old = json.loads((homes / "site_1" / ROSTER_FILE).read_text())["site_2"]
        for party in ("site_2", "server"):
            edited(homes / party, lambda roster: roster.update(site_2=replaced(old, load_identity(homes / "site_2").public)))
        assert made.public == load_identity(homes / "site_2").public
        refusing = ["site_1", "site_3"]
    run = disturbed(tmp_path / "r", sections(homes))
    assert run.survivors == {1: [site for site in PARTIES[:3] if site not in refusing]}
    assert wrong_sums(run, tmp_path / "reference") == []
    assert {e["site"] for e in run.events if e["event"] == "site-lost"} == set(refusing)
    assert not note(row, Ends.LEFT_OUT, run.told(1))


def replaced(old, public):
    """A key in the form of the roster's others."""
    import base64

    assert isinstance(old, str)
    return base64.b64encode(public).decode()

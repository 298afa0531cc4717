"""Sites that live by themselves and are not what a run takes them for: each is found out when it is asked to join, before it trains.

These are the sites of NVFlare and Flower, with their own homes, rosters and policies, in one process and without a network between.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from drilling.runs import disturbed, tiny
from drilling.table import STRANGE, Ends, drills

from pppml_core.discovery import from_objects
from pppml_core.errors import PppmlError
from pppml_core.federation import invitation
from pppml_core.federation.identity import ROSTER_FILE, new_identity
from pppml_core.registry import Registry
from pppml_core.testing import residents
from pppml_core.testing.policies import insist

PARTIES = ("site_1", "site_2", "site_3", "server")
PLUGIN = "pppml-secagg-plus"


@pytest.fixture(scope="module")
def registry():
    found = Registry.discover()
    return Registry((*found.offers, *from_objects([residents.ENGINE])))


@pytest.fixture
def homes(tmp_path):
    residents.acquaint(tmp_path / "homes", PARTIES)
    return tmp_path / "homes"


def other_code(patch, **other):
    """The coordinator has the plugin as another version, or with other files."""
    found = invitation.code_of_run

    def changed(*given):
        return {name: replace(code, **other) if name == PLUGIN else code for name, code in found(*given).items()}

    patch.setattr(invitation, "code_of_run", changed)


def version(homes, patch):
    other_code(patch, version="0.0.9")


def files(homes, patch):
    other_code(patch, sha256="0" * 64)


def not_installed(homes, patch):
    """At the sites, which look for themselves, the plugin is missing."""
    from pppml_core.federation import resident

    class Without:
        @staticmethod
        def discover():
            found = Registry.discover()
            return Registry(offer for offer in found.offers if offer.distribution != PLUGIN)

    patch.setattr(resident, "Registry", Without)


def model(homes, patch):
    insist(homes / "site_2", f"models: ['{'1' * 64}']")


def data(homes, patch):
    made = residents.invite

    def invite(job, *rest):
        return made(replace(job, sizes={**job.sizes, "site_2": job.sizes["site_2"] + 1}), *rest)

    patch.setattr(residents, "invite", invite)


def terms(homes, patch):
    """The coordinator announces more than the sum withstands."""
    from pppml_core.federation import admission

    own = invitation.announced

    def boasting(*given):
        told = own(*given)
        return {**told, "guarantees": {**told["guarantees"], "dropouts": 7}}

    patch.setattr(invitation, "announced", boasting)
    assert admission.announced is own


def edited(home, change):
    roster = json.loads((home / ROSTER_FILE).read_text())
    change(roster)
    (home / ROSTER_FILE).write_text(json.dumps(roster))


def unknown(homes, patch):
    edited(homes / "site_2", lambda roster: roster.pop("site_3"))


def no_coordinator(homes, patch):
    edited(homes / "site_2", lambda roster: roster.pop("server"))


def other_key(homes, patch):
    (homes / "site_2" / "identity.key").unlink()
    new_identity(homes / "site_2")


HOW = {
    "other plugin version": version,
    "other code of a plugin": files,
    "plugin that is not installed there": not_installed,
    "model that is not on the site's list": model,
    "other data than announced": data,
    "terms that its configuration does not keep": terms,
    "a key gone from its roster": unknown,
    "the coordinator's key gone from its roster": no_coordinator,
    "its own key replaced": other_key,
}


@pytest.mark.drill
@pytest.mark.parametrize("row", drills("residents", "secagg-plus", STRANGE), ids=lambda r: r.moment)
def test_it_does_not_join(note, registry, homes, monkeypatch, tmp_path, row):
    HOW[row.moment](homes, monkeypatch)
    monkeypatch.setattr(residents, "acquaint", lambda *given: None)
    sections = tiny(3, 1, aggregator="secagg-plus", run={"metrics": "none"}, engine={"use": "residents", "homes": str(homes)})
    with pytest.raises(PppmlError) as caught:
        disturbed(tmp_path / "r", {**sections, "registry": registry})
    assert "site_2" in str(caught.value)
    assert not list(homes.rglob("contribution-*")), "nobody has trained"
    assert not note(row, Ends.REFUSED, [str(caught.value)])


def test_without_any_of_that_they_join(registry, homes, tmp_path):
    sections = tiny(3, 1, aggregator="secagg-plus", run={"metrics": "none"}, engine={"use": "residents", "homes": str(homes)})
    assert disturbed(tmp_path / "r", {**sections, "registry": registry}).survivors == {1: list(PARTIES[:3])}

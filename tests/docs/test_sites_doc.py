"""docs/sites.md and the config of real sites: planned where there are no data; a hospital's file is read as it stands there."""

import json
from pathlib import Path

import pytest

from pppml_core.config import resolve
from pppml_core.errors import DataError, PlanRefused
from pppml_core.federation.site_file import SITE_FILE, engine_of, load_site_file
from pppml_core.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "sites.md").read_text()
EXAMPLE = ROOT / "examples" / "configs" / "real_sites.yaml"
for module in ("pppml_image_set", "pppml_secagg_plus", "pppml_flower", "pppml_monai_nets"):
    pytest.importorskip(module, reason="the config names its component")


def test_the_example_is_planned_without_any_data(pppml, tmp_path):
    (shown,) = pppml(tmp_path, f"pppml plan {EXAMPLE} --json")
    plan = json.loads(shown)
    assert plan["misfits"] == []
    assert plan["headline"].startswith("Nobody sees one site's update")
    assert {site["slug"]: site["train"] for site in plan["sites"]} == {"clinic_a": 412, "clinic_b": 230, "clinic_c": 305}
    assert plan["bytes"]["up_per_site_round"] > 1000
    assert not list(tmp_path.iterdir())


def test_the_other_commands_say_why_not(pppml, tmp_path):
    with pytest.raises(DataError, match="the data are at clinic_a, clinic_b, clinic_c, and none of them here"):
        pppml(tmp_path, f"pppml data {EXAMPLE}")
    with pytest.raises(PlanRefused, match="engine local runs every site here"):
        pppml(tmp_path, f"pppml run {EXAMPLE} --set engine=local --set reporters=[] --out run")


def test_the_page_shows_the_example(blocks):
    config, site, *_ = blocks(PAGE, "yaml")
    registry = Registry.discover()
    shown, whole = resolve(config, registry=registry), resolve(EXAMPLE, registry=registry)
    assert shown.model_copy(update={"run": whole.run}) == whole
    assert site.startswith("data:")


def test_the_page_shows_a_site_file_that_is_read(blocks, tmp_path):
    (tmp_path / SITE_FILE).write_text(blocks(PAGE, "yaml")[1])
    found = load_site_file(tmp_path)
    assert (found.data, found.task) == ("/data/xray", {"window": [0, 4095]})
    assert engine_of(tmp_path, Registry.discover()).superlink == "fl.example.org:9092"

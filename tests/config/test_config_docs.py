"""docs/config.md is what its generator writes, and says something about every setting."""

import subprocess
import sys
from pathlib import Path

import pytest

from pppml_core.config import RunConfig, resolve
from pppml_core.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_config_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr


def test_every_section_and_setting_is_described():
    for name in RunConfig.model_fields:
        assert f"\n## `{name}`\n" in TEXT
    undescribed = [line for line in TEXT.splitlines() if line.startswith("| `") and not line.split(" | ")[3].strip(" |")]
    assert undescribed == []


def test_the_example_is_a_config():
    example = TEXT.partition("```yaml\n")[2].partition("```")[0]
    assert resolve(example, (), Registry.only()).run.rounds == 20


@pytest.mark.parametrize("kind", ["aggregator", "reporter", "engine"])
def test_built_in_components_are_there(kind):
    for component in Registry.only().components(kind):
        assert f"\n### `{component.name}`\n" in TEXT

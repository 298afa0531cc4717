"""docs/policy.md names every rule, and what it shows of each is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pppml_core.config.source import load_yaml
from pppml_core.federation.policy import Policy, load_policy
from pppml_core.testing.policies import insist

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
#: rule -> the YAML under its heading.
SHOWN = dict(re.findall(r"^### `(\w+)`\n.*?^```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE))


def test_every_rule_has_its_place() -> None:
    assert list(SHOWN) == re.findall(r"^### `(\w+)`$", TEXT, re.MULTILINE)
    assert sorted(SHOWN) == sorted(Policy.model_fields)


@pytest.mark.parametrize("rule", SHOWN)
def test_what_is_shown_of_a_rule_is_that_rule(tmp_path: Path, rule: str) -> None:
    (tmp_path / "shown.yaml").write_text(SHOWN[rule])
    assert set(load_yaml(tmp_path / "shown.yaml").data) == {rule}
    insist(tmp_path, SHOWN[rule], careful=True)
    assert getattr(load_policy(tmp_path), rule) is not None


def test_a_rule_is_asked_where_the_page_says() -> None:
    from pppml_core.federation.admission import ANNOUNCED, BUILT, DESCRIBED
    from pppml_core.federation.site_check import IN_ROUNDS
    from pppml_core.federation.timetable import TIMETABLE

    asked = {*ANNOUNCED, *DESCRIBED, *BUILT, *TIMETABLE, *IN_ROUNDS}
    assert set(Policy.model_fields) - {"total_delta"} <= asked, "no rule is read and then forgotten"
    for name in asked - set(Policy.model_fields):
        assert f"`{name}`" in TEXT, "what every site insists on is told as well"

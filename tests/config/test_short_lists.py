"""A list of a fixed length that has too few entries: said once, at the list, with the length it needs."""

from typing import Literal

import pytest
from pydantic import Field

from pppml_core import Component, ComponentConfig
from pppml_core.config import InvalidConfig, resolve
from pppml_core.errors import ConfigError
from pppml_core.registry import Registry


class Pair(ComponentConfig):
    name: str
    range: tuple[float, float]


class NetConfig(ComponentConfig):
    channels: tuple[int, int, int] = Field((8, 16, 32), description="channels of each level")
    kernel: int | tuple[int, int] = Field(3, description="one side or two")
    stride: Literal["auto"] | tuple[int, int] | tuple[int, int, int] = Field("auto", description="by axis")
    pairs: list[Pair] = Field(default_factory=list, description="named ranges")


@pytest.fixture
def refused(tmp_path):
    registry = Registry.only({"model": [Component("net", NetConfig, "nowhere:Nothing", "a net")]})

    def refuse(*settings: str, more: str = "") -> ConfigError:
        (tmp_path / "c.yaml").write_text(f"task: tiny\nmodel:\n  use: net\n{''.join(f'  {s}' + chr(10) for s in settings)}{more}")
        with pytest.raises(ConfigError) as caught:
            resolve(tmp_path / "c.yaml", (), registry)
        return caught.value

    return refuse


@pytest.mark.parametrize(
    ("setting", "place", "said"),
    [
        ("channels: [16, 32]", "model.channels", "must be a list of 3, not a list of 2"),
        ("channels: [16]", "model.channels", "must be a list of 3, not a list of 1"),
        ("channels: []", "model.channels", "must be a list of 3, not a list of 0"),
        ("channels: [1, 2, 3, 4]", "model.channels", "must be a list of at most 3, not a list of 4"),
        ("channels: [1, 2, x]", "model.channels[2]", "must be a whole number, not 'x'"),
        ("kernel: [3]", "model.kernel", "must be a whole number or a list of 2, not a list of 1"),
        ("stride: [1]", "model.stride", "must be 'auto' or a list of 2 or a list of 3, not a list of 1"),
        ("pairs: [{name: a, range: [0.0]}]", "model.pairs[0].range", "must be a list of 2, not a list of 1"),
        ("pairs: [{range: [0.0, 1.0]}]", "model.pairs[0].name", "is missing"),
    ],
)
def test_one_sentence_at_the_list(refused, setting, place, said):
    error = refused(setting)
    assert not isinstance(error, InvalidConfig), error
    assert error.place == f"{error.place.partition(':')[0]}:4: {place}"
    assert error.message == said


def test_the_hint_is_the_settings_description(refused):
    assert refused("channels: [16, 32]").hint == "channels: channels of each level"


def test_what_else_is_wrong_is_said_too(refused):
    error = refused("channels: [x]", "kernel: [1]", more="training: {optimizer: {betas: [0.9]}}\n")
    assert isinstance(error, InvalidConfig)
    said = str(error)
    for part in (
        "c.yaml:4: model.channels: must be a list of 3, not a list of 1",
        "c.yaml:4: model.channels[0]: must be a whole number, not 'x'",
        "c.yaml:5: model.kernel: must be a whole number or a list of 2, not a list of 1",
        "c.yaml:6: training.optimizer.betas: must be a list of 2, not a list of 1",
    ):
        assert part in said

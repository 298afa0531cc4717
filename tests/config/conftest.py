"""A registry of made-up components, so that these tests do not depend on what is installed."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, field_validator

from pppml_core import Choice, Component, ComponentConfig
from pppml_core.discovery import Offer
from pppml_core.registry import Registry


class Nothing(ComponentConfig):
    pass


class Partition(ComponentConfig):
    by: Literal["iid", "dirichlet", "source"] = "iid"
    alpha: float = Field(0.3, gt=0)


class CellsConfig(ComponentConfig):
    """Cells."""

    sites: int = Field(3, ge=1, le=500, description="number of sites")
    path: str | None = Field(None, description="npz file")
    partition: Partition = Partition()
    size: tuple[int, int] = (28, 28)

    @field_validator("path")
    @classmethod
    def _npz(cls, path):
        if path is not None and not path.endswith(".npz"):
            raise ValueError("must be an npz file")
        return path


class NetConfig(ComponentConfig):
    channels: list[int] = Field([8, 16], min_length=1, description="channels of each level")
    norm: Literal["batch", "group"] = "group"


class BackendConfig(ComponentConfig):
    scheme: Literal["bfv", "ckks"] = "bfv"


class RingConfig(ComponentConfig):
    rings: int = Field(2, ge=1)
    backend: Annotated[ComponentConfig, Choice("he-backend", default="toy-he")]


class AttackConfig(ComponentConfig):
    vantage: str = Field(description="whose view it reads")
    rounds: list[int] = [1]


def component(name, config=Nothing):
    return Component(name, config, "nowhere:Nothing", f"the {name}")


@pytest.fixture(scope="session")
def registry():
    return Registry.only(
        {
            "task": [component("cells", CellsConfig), component("chest", CellsConfig)],
            "model": [component("small-net", NetConfig), component("wide-net", Nothing)],
            "aggregator": [component("plain"), component("ring", RingConfig)],
            "he-backend": [component("toy-he", BackendConfig)],
            "personalization": [component("fedavg"), component("local-only")],
            "privacy": [component("none")],
            "attack": [component("gradients", AttackConfig)],
            "engine": [component("local")],
            "reporter": [component("console"), component("jsonl")],
        },
        Offer("plugin", "pppml-blood-cells", "0.1.0", reason="ImportError: no module"),
        {"model": [component("twice")]},
        {"model": [component("twice")]},
        builtin=False,
    )

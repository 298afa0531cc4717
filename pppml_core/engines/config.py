"""Settings of the built-in engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core.component import ComponentConfig
from pppml_core.engines.faults import Fault


class LocalConfig(ComponentConfig):
    """`local`: all sites on this machine, exchanging encoded messages."""

    workers: int = Field(1, ge=1, le=256, description="processes that sites are spread over; 1: in this process, one after another")
    topology: Literal["p2p", "star"] = Field("p2p", description="how a relay travels: from site to site, or through the server")
    amnesia: bool = Field(False, description="for tests: every site is rebuilt from bytes before every message")
    faults: list[Fault] = Field(default_factory=list, description="for tests: what goes wrong, at which site and stage")

"""Settings of the built-in engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core.component import ComponentConfig
from pppml_core.engines.faults import Fault, Strike


class LocalConfig(ComponentConfig):
    """`local`: all sites on this machine, exchanging encoded messages."""

    workers: int = Field(1, ge=1, le=256, description="processes that sites are spread over; 1: in this process, one after another")
    topology: Literal["p2p", "star"] = Field("p2p", description="how a relay travels: from site to site, or through the server")
    amnesia: bool = Field(False, description="for tests: every site is rebuilt from bytes before every message")
    faults: list[Fault] = Field(default_factory=list, description="for tests: what goes wrong, at which site and stage")


class ProcessesConfig(ComponentConfig):
    """`processes`: each site an operating-system process of its own, with its own home, keys and policy, talking over a loopback socket.

    The topology is a star: the coordinator carries every hop. What is sealed to the next site stays closed to it.
    """

    timeout: float = Field(3600.0, gt=0, le=864_000, description="seconds a site may take for one answer; then it counts as lost")
    parallel: int | None = Field(None, ge=1, le=1024, description="sites that compute at once; default: the number of processors")
    homes: str | None = Field(
        None,
        description="folder of existing homes, `homes/SITE` and `homes/server`, made with `pppml site init`, each with identity, roster "
        "and policy; default: identities made for this run, under its folder",
    )
    restart: bool = Field(True, description="a site whose process ended is started again for the next attempt")
    faults: list[Fault | Strike] = Field(
        default_factory=list,
        description="for tests: what goes wrong, at which site and stage; `do` may also be `kill-before`, `kill`, `kill-after` (SIGKILL "
        "before a request, once the site has it, after its reply) or `stall` (the process stops until nobody waits for its reply)",
    )

"""Settings of the engine ``flower``: those of the coordinator, and those in the ``site.yaml`` of a home."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core import ComponentConfig
from pppml_core.engines.faults import Fault


class FlowerConfig(ComponentConfig):
    """`flower`: each site behind a Flower SuperNode; the coordinator is a ServerApp beside the SuperLink.

    The topology is a star: the SuperLink carries every hop. What is sealed to the next site stays closed to it.
    """

    environment: Literal["federation", "processes"] = Field(
        "federation",
        description="`federation`: a SuperLink that runs already; the run starts with `pppml export flower` and `flwr run`. `processes`: "
        "`pppml run` starts a SuperLink and a SuperNode a site on this machine, with TLS and authenticated nodes on the loopback "
        "interface, and ends them with the run",
    )
    timeout: float = Field(3600.0, gt=0, le=864_000, description="seconds a site may take for one answer; then it counts as lost")
    wait: float = Field(600.0, gt=0, le=864_000, description="seconds to wait at the start until the node of every site has named itself")
    poll: float = Field(0.2, ge=0.01, le=60, description="seconds between two looks for answers at the SuperLink")
    homes: str | None = Field(
        None,
        description="folder of existing homes made with `pppml site init`: `homes/server`, under `processes` also `homes/SITE`; default: "
        "the home that the SuperLink was started with; under `processes` identities made for this run, under its folder",
    )
    python: str | None = Field(
        None,
        description="under `processes` and in a `site.yaml`: an interpreter that has Flower, pppml and this plugin; default: "
        "the one that runs this",
    )
    faults: list[Fault] = Field(default_factory=list, description="for tests: what goes wrong, at which site and stage")
    superlink: str | None = Field(None, description="in a `site.yaml`: HOST:PORT of the SuperLink; in that of `server`: where it listens")
    root_certificates: str | None = Field(
        None, description="in a `site.yaml`: PEM file of the authority that signed the SuperLink's certificate; default: the system's"
    )
    auth_key: str | None = Field(
        None, description="in a `site.yaml`: private key (P-384, OpenSSH form) by which the SuperLink knows this node"
    )
    certificate: str | None = Field(None, description="in the `site.yaml` of `server`: PEM file, the SuperLink's certificate")
    certificate_key: str | None = Field(None, description="in the `site.yaml` of `server`: PEM file, the key of that certificate")
    insecure: bool = Field(
        False, description="in a `site.yaml`: no TLS and no node authentication; anybody on the way reads what is not sealed"
    )
    patience: float = Field(0.5, ge=0.05, le=3, description="in a `site.yaml`: seconds between two questions for work to the SuperLink")

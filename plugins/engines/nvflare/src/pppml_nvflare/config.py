"""Settings of the engine ``nvflare``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core.component import ComponentConfig
from pppml_core.engines.faults import Fault


class NvflareConfig(ComponentConfig):
    """`nvflare`: sites that live by themselves, reached through the functions that NVFlare's Collab publishes."""

    environment: Literal["sim", "poc", "prod", "job"] = Field(
        "sim",
        description="`sim`: NVFlare's simulator; `poc`: server and clients as processes of this machine with certificates of their own, "
        "as in production; `prod`: a provisioned federation that is running. The first two are started for the run and stopped after it. "
        "`job`: what `pppml export nvflare` writes, conducted by NVFlare's server itself",
    )
    topology: Literal["star", "p2p"] = Field(
        "star",
        description="how a relay travels: hop by hop through the coordinator, or from site to site by calls between NVFlare's clients. "
        "Where transcripts keep payloads, and with `faults`, it is a star all the same",
    )
    timeout: float = Field(3600.0, gt=0, le=864_000, description="seconds a site may take for one answer; then it counts as lost")
    silence: float = Field(
        60.0, ge=1, le=86_400, description="seconds without a sign of life of a site's NVFlare client; then the site counts as lost"
    )
    start: float = Field(300.0, gt=0, le=86_400, description="seconds for the federation and its job to come up")
    parallel: int | None = Field(None, ge=1, le=1024, description="sites asked at once; default: all of them")
    homes: str | None = Field(
        None,
        description="folder of existing homes, `homes/server` and, in `sim` and `poc`, `homes/SITE`, made with `pppml site init`; default: "
        "identities made for this run, under its folder (`prod` has no default: its sites know only a coordinator they have pinned)",
    )
    kit: str | None = Field(
        None,
        description="a startup kit. In a run: an administrator's, to submit the job with (`prod`; `poc`: where a federation is running "
        "already). In `site.yaml`: the kit of this site's NVFlare client, or of the coordinator's NVFlare server",
    )
    python: str | None = Field(
        None, description="an interpreter of its own that has NVFlare, pppml and this plugin; default: the one that runs this"
    )
    faults: list[Fault] = Field(default_factory=list, description="for tests: what goes wrong, at which site and stage")

"""An engine whose sites are residents in this process: what any engine for real sites must do, without a network; for tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pppml_core.component import Component, ComponentConfig
from pppml_core.engines.parties import acquaint as acquaint
from pppml_core.engines.remote import invite
from pppml_core.federation.resident import Resident
from pppml_core.interfaces.engine import Engine, Job, Loss, Topology, Transport
from pppml_core.wire.messages import SERVER


class ResidentsConfig(ComponentConfig):
    """Where the homes are."""

    homes: str


class ResidentsEngine(Engine):
    """``{use: residents, homes: PATH}``: homes that are missing are made, and everybody pinned by everybody."""

    topology: Topology = "p2p"
    config: ResidentsConfig

    def __init__(self, config: ResidentsConfig) -> None:
        super().__init__(config)
        self.homes: Path = Path(config.homes)

    def connect(self, job: Job) -> Transport:
        """Invite the sites."""
        acquaint(self.homes, (*job.sites, SERVER))
        transport = ResidentsTransport(self.homes, job.sites)
        return invite(job, transport, self.topology)


class ResidentsTransport:
    """Hands frames to residents of this process."""

    def __init__(self, homes: Path, sites: Iterable[str]) -> None:
        self.homes = homes
        self.residents = {site: Resident(homes / site) for site in sites}

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """One after another."""
        for site, frame in frames:
            yield site, self.residents[site].receive(frame)

    def clock(self) -> Mapping[str, float]:
        """Sites do not tell."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


ENGINE = ("engine", Component("residents", ResidentsConfig, f"{__name__}:ResidentsEngine", "sites with homes, in this process"))

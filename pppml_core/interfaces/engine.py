"""Engines: where sites run and how bytes travel.

An engine connects to a job and gives a transport. A transport does one thing: deliver frames (bytes) to sites and hand back their
reply frames as they come, or a :class:`Loss`. Everything above frames (encoding, folding, relays, transcript, manifest) is shared
code, so the same protocol runs on every engine::

    class InProcess(Engine):
        topology = "p2p"

        def connect(self, job):
            return Transport(job)

    class Transport:
        def deliver(self, frames):
            for site, frame in frames:
                yield site, self.sites[site].receive(frame)

        def clock(self):
            return {}

        def close(self):
            pass
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pppml_core.component import ComponentConfig
from pppml_core.errors import ConfigError

Topology = Literal["p2p", "star"]


@dataclass(frozen=True)
class Job:
    """What an engine needs to bring sites to life.

    Args:
        run: 16 bytes that name the run.
        config: the resolved configuration as plain data; sites build their components from it.
        folder: where each site keeps its own folder, ``folder/<site>``.
        sites: slugs in the task's order.
        sizes: training examples of each site, for balancing.
        objects: live Python objects a researcher passed instead of names, by config path; in-process engines only.
        homes: where each party's home lies, ``homes/<party>`` or by name: its identity, its roster and its policy; default: ``folder``.
        parts: the parts as this process has built them, for engines whose sites live in it.
    """

    run: bytes
    config: Mapping[str, Any]
    folder: Path
    sites: tuple[str, ...]
    sizes: Mapping[str, int]
    objects: Mapping[str, Any]
    homes: Path | Mapping[str, Path] | None = None
    parts: Any = field(default=None, repr=False)
    #: rounds were held before: a site that is out of reach now is lost as in any round.
    resumed: bool = False

    def home(self, party: str) -> Path:
        """The home of a party: a site, or ``server``."""
        return self.homes[party] if isinstance(self.homes, Mapping) else (self.homes or self.folder) / party


@dataclass(frozen=True)
class Loss:
    """A site did not answer. ``handed``: the frame reached, or may have reached, the site."""

    reason: str
    handed: bool


@dataclass(frozen=True)
class Step:
    """A frame that went from one site to another past the coordinator, as the sites tell. ``sha256``: hexadecimal."""

    sender: str
    recipient: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Walk:
    """How a relay went that sites handed on among themselves.

    Args:
        at: the site at which it ended.
        reply: that site's reply frame, or its loss.
        steps: frames from site to site, in order.
        bridged: sites that were never handed their frame and left out.
        unhanded: where the loss is that of a site which was surely never handed its frame: that frame.
    """

    at: str
    reply: bytes | Loss
    steps: tuple[Step, ...] = ()
    bridged: tuple[str, ...] = ()
    unhanded: bytes | None = None


class Transport(Protocol):
    """A live connection to the sites.

    It may have three things more: ``parallel``, how many sites compute at once; ``remarks()``, sentences for the user when the run ends;
    and ``walk(path, frame, bridge) -> Walk``, where sites can hand on a relay among themselves: ``frame`` is for the first of ``path``, and
    what each answers goes on to the next as a message of its own (see :class:`pppml_core.wire.messages.Relay`). What the last one answers,
    or what could not be handed on, comes from that site to the coordinator: a transport lets it pass through no other one.
    """

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Send each frame to its site; yield ``(site, reply frame or Loss)`` as they arrive, each site once."""

    def clock(self) -> Mapping[str, float]:
        """Seconds the sites spent in ``train`` and ``evaluate`` so far, summed; empty where that is not the engine's to know."""

    def close(self) -> None:
        """Stop the sites. Safe to call twice."""


class Engine(ABC):
    """Connects a job to running sites.

    When ``connect`` returns, the home of ``server`` and the homes of the sites it started hold an identity and a roster: made by
    :func:`pppml_core.federation.identity.provision` where one person runs all of them, or put there by people.
    """

    topology: Topology = "p2p"
    #: all sites run where the coordinator runs, with the task as it is there: no site has data that the coordinator has not.
    sites_here: bool = False
    #: homes that exist already, ``homes/<party>`` or by name; None: under the run's folder.
    homes: Path | Mapping[str, Path] | None = None

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def misfits(self, job_objects: Mapping[str, Any]) -> list[str]:
        """All reasons why this engine cannot run this job."""
        return []

    @abstractmethod
    def connect(self, job: Job) -> Transport:
        """Bring the sites up."""

    def serve(self, home: Path) -> int:
        """Be the site of this home until the engine ends; the exit code of `pppml site run`, which calls it at a hospital.

        Only engines whose sites live by themselves have it. Raises ConfigError where this one starts its sites itself.
        """
        name = getattr(self.config, "use", type(self).__name__)
        hint = "name an engine for real sites in site.yaml, or start the run where the coordinator is: pppml run"
        raise ConfigError(f"the engine {name} starts its sites itself", place="engine", hint=hint)

    def exported(self) -> ComponentConfig:
        """The settings of a job that :meth:`export` writes: those of a run between real sites, without what is on this machine only."""
        return self.config

    def export(self, config: Mapping[str, Any], folder: Path) -> Path:
        """Write a run as a job of the engine's own kind, for the people who operate it; what `pppml export NAME CONFIG` calls.

        Args:
            config: resolved, as plain data, with the settings that :meth:`exported` gives.
            folder: a new or empty folder; made if it is not there.

        Returns what is to be handed to the engine, in ``folder``. Raises ConfigError where the engine has no jobs of its own.
        """
        name = getattr(self.config, "use", type(self).__name__)
        raise ConfigError(f"the engine {name} has no jobs to export", place="engine", hint="start the run itself: pppml run")

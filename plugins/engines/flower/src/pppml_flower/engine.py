"""The engine ``flower``: invites sites over the grid of the app it runs in, writes that app, and starts the node of a site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pppml_core.engines.remote import invite
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.federation.identity import load_roster
from pppml_core.interfaces.engine import Engine, Job, Topology, Transport
from pppml_core.wire.messages import SERVER
from pppml_flower.config import FlowerConfig
from pppml_flower.introduction import Directory
from pppml_flower.post import Post
from pppml_flower.transport import MARGIN, FlowerTransport


class FlowerEngine(Engine):
    """The engine of that name."""

    topology: Topology = "star"
    config: FlowerConfig

    def __init__(self, config: FlowerConfig) -> None:
        super().__init__(config)
        self.homes = Path(config.homes).expanduser().resolve() if config.homes else None

    def misfits(self, job_objects: Mapping[str, Any]) -> list[str]:
        """Live objects cannot travel to sites; homes that are named must be there."""
        out = []
        if names := ", ".join(sorted(name for name in job_objects if name.partition(".")[0] not in ("engine", "reporters", "attacks"))):
            out.append(f"engine: flower cannot share live Python objects ({names}); write them as module:attr")
        if self.homes is not None and not self.homes.is_dir():
            out.append(f"engine.homes: there is no folder {self.homes}; make homes with `pppml site init`")
        return out

    def connect(self, job: Job) -> Transport:
        """Find the node of every site and invite them; under ``environment: processes`` start them first."""
        from pppml_flower.server import post_at_hand

        if (post := post_at_hand()) is not None:
            return joined(job, post, self.config)
        if self.config.environment == "processes":
            from pppml_flower.bridge import on_this_machine

            return on_this_machine(job, self.config)
        raise ConfigError(
            "there is no Flower grid here",
            place="engine",
            hint="write an app with `pppml export flower CONFIG -o DIR` and start it with `flwr run DIR SUPERLINK`; or set "
            "engine.environment to processes, for a federation on this machine",
        )

    def export(self, config: Mapping[str, Any], folder: Path) -> Path:
        """Write the app that ``flwr run`` takes."""
        from pppml_flower.export import write_app

        return write_app(config, folder)

    def serve(self, home: Path) -> None:
        """Keep a home and run its SuperNode, until interrupted."""
        from pppml_flower.site import serve

        serve(home, self.config)


def joined(job: Job, post: Post, config: FlowerConfig) -> FlowerTransport:
    """A transport to sites that have all been found and have all agreed. Raises RunFailed that says which did not, and why."""
    roster = load_roster(job.home(SERVER))
    if unknown := [site for site in job.sites if site not in roster]:
        hint = f"pppml site trust --home {job.home(SERVER)}"
        raise ConfigError(f"no identity is pinned for {', '.join(unknown)}", place="engine.homes", hint=hint)
    directory = Directory(post, job.run, job.sites, roster, config.poll, config.wait + MARGIN)
    directory.look(config.wait)
    if directory.missing and not job.resumed:
        passed = "".join(f"; node {node}: {reason}" for node, reason in directory.strange.items())
        text = f"no node has shown to be {', '.join(directory.missing)} within {config.wait:g} seconds{passed}"
        raise RunFailed(text, place="join", hint="start them with `pppml site run`; look at their logs")
    transport = FlowerTransport(post, directory, job.sites, config.timeout, config.poll)
    invite(job, transport)
    return transport

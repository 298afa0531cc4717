"""The engine ``flower``: invites sites over the grid of the app it runs in, writes that app, and starts Flower's process of a party."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pppml_core.engines.faults import FaultyTransport
from pppml_core.engines.local import at_sites
from pppml_core.engines.parties import HOME, HOMES
from pppml_core.engines.remote import invite
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.federation.identity import load_identity, load_roster
from pppml_core.interfaces.engine import Engine, Job, Topology, Transport
from pppml_core.wire.messages import SERVER
from pppml_flower.at_hand import post_at_hand
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
        given = config.homes or (os.environ.get(HOMES) if post_at_hand() is not None else None)
        self.homes = Path(given).expanduser().resolve() if given else None
        if self.homes is None and post_at_hand() is not None and (home := os.environ.get(HOME)):
            self.homes = {SERVER: Path(home).resolve()}

    def misfits(self, job_objects: Mapping[str, Any]) -> list[str]:
        """Live objects cannot travel to sites; homes that are named must be there."""
        out = []
        if names := ", ".join(sorted(at_sites(job_objects))):
            out.append(f"engine: sites cannot share live Python objects ({names}); use `engine: local`, or write them as module:attr")
        homes = self.homes.values() if isinstance(self.homes, Mapping) else [self.homes]
        missing = [home for home in homes if home is not None and not home.is_dir()]
        return out + [f"engine.homes: there is no folder {home}; make homes with `pppml site init`" for home in missing]

    def connect(self, job: Job) -> Transport:
        """Find the node of every site and invite them; under ``environment: processes`` start them first."""
        transport: Transport
        if (post := post_at_hand()) is not None:
            transport = joined(job, post, self.config)
        elif self.config.environment == "processes":
            if self.config.python is None and importlib.util.find_spec("flwr") is None:
                hint = "pip install pppml-flower, or name an interpreter that has it: engine.python"
                raise ConfigError("Flower is not installed here", place="engine", hint=hint)
            from pppml_flower.bridge import on_this_machine

            transport = on_this_machine(job, self.config)
        else:
            hint = (
                "write an app with `pppml export flower CONFIG -o DIR` and start it with `flwr run DIR SUPERLINK`; or set "
                "engine.environment to processes, for a federation on this machine"
            )
            raise ConfigError("there is no Flower grid here", place="engine", hint=hint)
        return FaultyTransport(transport, self.config.faults) if self.config.faults else transport

    def exported(self) -> FlowerConfig:
        """Over a SuperLink that runs already, whose machine knows its own home."""
        return type(self.config).model_validate(self.config.model_dump(include={"use", "timeout", "wait", "poll", "faults"}))

    def export(self, config: Mapping[str, Any], folder: Path) -> Path:
        """Write the app that ``flwr run`` takes."""
        from pppml_flower.export import write_app

        return write_app(config, folder)

    def serve(self, home: Path) -> int:
        """Keep a home and run its SuperNode, until interrupted; for ``server``: run the SuperLink."""
        from pppml_flower.site import serve

        return serve(home, self.config)


def joined(job: Job, post: Post, config: FlowerConfig) -> Transport:
    """A transport to sites that have all been found and have all agreed. Raises RunFailed that says which did not, and why."""
    roster = load_roster(job.home(SERVER))
    if unknown := [site for site in job.sites if site not in roster]:
        hint = f"pppml site trust --home {job.home(SERVER)}"
        raise ConfigError(f"no identity is pinned for {', '.join(unknown)}", place="engine.homes", hint=hint)
    directory = Directory(post, job.run, job.sites, roster, load_identity(job.home(SERVER)), config.poll, config.wait + MARGIN)
    directory.look(config.wait)
    if directory.missing and not job.resumed:
        passed = "".join(f"; node {node}: {reason}" for node, reason in directory.strange.items())
        failed = f"; the SuperLink could not be asked: {directory.failed}" if directory.failed else ""
        text = f"no node has shown to be {', '.join(directory.missing)} within {config.wait:g} seconds{passed}{failed}"
        raise RunFailed(text, place="join", hint="start them with `pppml site run`; look at their logs")
    return invite(job, FlowerTransport(post, directory, job.sites, config.timeout, config.poll), FlowerEngine.topology)

"""The engine ``nvflare``: brings a federation up where that is its part, submits a job, and invites the sites."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pppml_core.engines.faults import FaultyTransport
from pppml_core.engines.local import at_sites
from pppml_core.engines.parties import HOME, acquaint
from pppml_core.engines.remote import invite
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.interfaces.engine import Engine, Job, Topology, Transport
from pppml_core.wire.messages import SERVER
from pppml_nvflare import conducting
from pppml_nvflare.config import NvflareConfig
from pppml_nvflare.federation import Carrier, Simulator, Submitted
from pppml_nvflare.transport import NvflareTransport


class NvflareEngine(Engine):
    """The engine of that name."""

    config: NvflareConfig

    def __init__(self, config: NvflareConfig) -> None:
        super().__init__(config)
        # Faults strike between coordinator and site, so every hop must pass there.
        self.topology: Topology = "star" if config.faults else config.topology
        inside = conducting.here()
        self._own_homes = Path(config.homes).resolve() if config.homes else None
        self.homes = self._own_homes if inside is None else inside[1]
        self.sites_here = config.environment in ("sim", "poc") and self.homes is None  # a home may say where its site's own data are

    def misfits(self, job_objects: Mapping[str, Any]) -> list[str]:
        """What cannot travel to sites, and what is missing here."""
        out = []
        if names := ", ".join(sorted(at_sites(job_objects))):
            out.append(f"engine: sites cannot share live Python objects ({names}); use `engine: local`, or write them as module:attr")
        if conducting.here() is not None:
            return out
        if self._own_homes is not None and not self._own_homes.is_dir():
            out.append(f"engine.homes: there is no folder {self._own_homes}; make homes with `pppml site init`")
        if self.config.environment == "prod" and (missing := [name for name in ("kit", "homes") if not getattr(self.config, name)]):
            out += [f"engine.{name}: `environment: prod` needs it" for name in missing]
        if self.config.kit and not (Path(self.config.kit) / "startup").is_dir():
            out.append(f"engine.kit: {self.config.kit} is no startup kit")
        if self.config.python is None and importlib.util.find_spec("nvflare") is None:
            out.append(
                "engine: NVFlare is not installed here; pip install pppml-nvflare, or name an interpreter that has it (engine.python)"
            )
        return out

    def connect(self, job: Job) -> Transport:
        """Bring up what is missing, submit the job, and return when every site has joined. Raises RunFailed with what keeps one from it."""
        inside = conducting.here()
        transport = inside[0] if inside is not None else self._begun(job)
        try:
            signed = invite(job, transport, self.topology)
        except BaseException:
            transport.close()
            raise
        return FaultyTransport(signed, self.config.faults) if self.config.faults else signed

    def _begun(self, job: Job) -> NvflareTransport:
        if self.config.environment == "job":
            hint = "submit what `pppml export nvflare` writes; or `environment: prod`, to conduct the run from here"
            raise ConfigError("such a run is conducted by NVFlare's server", place="engine.environment", hint=hint)
        carry, stop = self._carrier(job)
        settings = self.config
        parallel = min(settings.parallel or len(job.sites), len(job.sites))
        arguments = {"timeout": settings.timeout, "silence": settings.silence, "parallel": parallel}
        # A server that was not started here shares this party's home with it, and no more.
        place = job.home(SERVER).resolve() if settings.kit is not None else None
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", str(job.config["run"]["name"])).strip("-") or "run"
        transport = NvflareTransport(f"pppml-{name}", job.sites, arguments, settings.start, parallel, carry, stop, place)
        try:
            transport.begin()
        except BaseException:
            transport.close()
            raise
        return transport

    def _carrier(self, job: Job) -> tuple[Callable[[Path], Carrier], Callable[[], None]]:
        """How a job is carried, and how to end what is started here and now to carry it."""
        settings, parties = self.config, (*job.sites, SERVER)
        python, log = settings.python or sys.executable, job.folder.parent / "nvflare.log"
        homes = self._own_homes or job.folder
        if settings.environment != "prod" and self._own_homes is None:
            acquaint(homes, parties)
        if settings.environment == "sim":
            threads = int(job.config["training"]["threads"])
            return lambda folder: Simulator(folder, job.sites, homes, log, python, threads), lambda: None
        if settings.kit is not None:
            kit = Path(settings.kit)
            return lambda folder: Submitted(kit, folder, job.sites, settings.start, log, python), lambda: None
        from pppml_nvflare.poc import HeldPoc

        poc = HeldPoc(job.sites, homes, python, log)
        return lambda folder: Submitted(poc.kit, folder, job.sites, settings.start, log, python), poc.stop

    def serve(self, home: Path) -> int:
        """Be this party's NVFlare process until it ends; its exit code. The kit is that of a client, or of the server."""
        from pppml_core.federation.home import open_home
        from pppml_nvflare.kits import check, command, environment, role
        from pppml_nvflare.processes import run_until_stopped

        if self.config.kit is None:
            raise ConfigError("no startup kit is named", place="engine.kit", hint="in site.yaml: engine: {use: nvflare, kit: PATH}")
        kit, name = (home / self.config.kit).resolve(), open_home(home).name
        if role(kit) != ("server" if name == SERVER else "client"):
            raise ConfigError(f"this kit is not for {name}: it starts a {role(kit)}", place=str(kit))
        check(kit)
        started = command(kit, self.config.python or sys.executable)
        if name != SERVER and f"uid={name}" not in started:
            raise ConfigError(f"NVFlare knows this kit by another name than {name}", place=str(kit), hint="use one name for home and kit")
        return run_until_stopped(started, kit, environment(**{HOME: str(home.resolve())}))

    def exported(self) -> NvflareConfig:
        """Conducted by NVFlare's server, which knows its own home."""
        kept = self.config.model_dump(include={"use", "timeout", "silence", "start", "parallel", "topology"})
        return type(self.config).model_validate({**kept, "environment": "job"})

    def export(self, config: Mapping[str, Any], folder: Path) -> Path:
        """Write a job that NVFlare's server conducts by itself, and a README beside it. Returns the job's folder."""
        from pppml_nvflare.export import export

        try:
            return export(config, self.config, folder)
        except OSError as error:
            raise RunFailed(f"the job cannot be written: {error.strerror}", place=str(folder)) from error

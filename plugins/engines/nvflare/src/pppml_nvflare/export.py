"""``pppml export nvflare``: a run as a job which a provisioned NVFlare server takes and conducts by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pppml_core.config import resolve
from pppml_core.config.source import dump_yaml
from pppml_core.federation.assembly import Assembly
from pppml_core.registry import Registry
from pppml_nvflare.config import NvflareConfig
from pppml_nvflare.job import CLASSES, write_job

_README = """\
# {name}: a run of pppml, as an NVFlare job

`{job}` is the job: a few JSON files and the run's configuration. It holds no data, no key and no code; every party runs what it has
installed. Submit it as an administrator of the federation, whose startup kit is ADMIN_KIT:

    nvflare job submit -j {job} --startup-kit ADMIN_KIT

Sites (NVFlare clients): {sites}. The server conducts the run; its folder is `runs/{run}` in the coordinator's home, and the result goes
with NVFlare's job result (`pppml/`). A run that was interrupted goes on when the job is submitted again.

Before: every party has a home (`pppml site init`), has pinned the others (`pppml site trust`), and runs `pppml site run --home HOME`, with
`engine: {{use: nvflare, kit: KIT}}` in the home's `site.yaml`. Each NVFlare process must allow these classes, and needs no others
(`python -m pppml_nvflare.kits admit KIT`):

{classes}
"""


def export(config: Mapping[str, Any], settings: NvflareConfig, folder: Path) -> Path:
    """Write ``folder/<job>`` and ``folder/README.md``; the job's folder."""
    registry = Registry.discover()
    sites = [site.slug for site in Assembly.build(resolve(config, registry=registry), registry).task.sites()]
    run = str(config["run"]["name"])
    job = "pppml-" + (re.sub(r"[^A-Za-z0-9_-]+", "-", run).strip("-") or "run")
    arguments = {"timeout": settings.timeout, "silence": settings.silence, "parallel": settings.parallel or 0}
    written = write_job(folder / job, job, sites, arguments, settings.start, dump_yaml(config))
    classes = "\n".join(f"- `{name}`" for name in CLASSES)
    (folder / "README.md").write_text(_README.format(name=run, run=run, job=job, sites=", ".join(sites), classes=classes))
    return written

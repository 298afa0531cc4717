"""The NVFlare job of a run: a folder of a few JSON files, without code. Everything a site runs is what it has installed itself.

NVFlare allows a job without code only the classes that each site lists (``class_allow_list`` in its ``resources.json``); ``CLASSES`` are
all that this engine needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONTROLLER, EXECUTOR = "nvflare.collab.runtime.controller.CollabController", "nvflare.collab.runtime.executor.CollabExecutor"
COORDINATOR, DOOR = "pppml_nvflare.server.Coordinator", "pppml_nvflare.site.Door"
#: what a site, and the server, must allow.
CLASSES = (CONTROLLER, EXECUTOR, COORDINATOR, DOOR)


def write_job(folder: Path, name: str, sites: Sequence[str], arguments: Mapping[str, Any], start: float, config: str = "") -> Path:
    """Write a job for these sites.

    Args:
        folder: where; made if it is not there.
        name: of the job, as NVFlare shows it.
        sites: names of NVFlare clients.
        arguments: of :class:`pppml_nvflare.server.Coordinator`; how long it waits is how long its sites wait for each other.
        start: seconds for all clients to begin.
        config: the run's configuration, for a job that is conducted by NVFlare's server; only the server gets it.
    """
    calls = 2 * len(sites) + 8
    threads = {"max_inbound_call_threads": calls, "max_outbound_call_threads": calls}
    server = {
        "format_version": 2,
        "workflows": [_part("controller", CONTROLLER, {"server_obj_id": "_server", "sync_task_timeout": math.ceil(start), **threads})],
        "components": [_part("_server", COORDINATOR, arguments)],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    patience = {name: arguments[name] for name in ("timeout", "silence")}
    executor = {"path": EXECUTOR, "args": {"client_obj_id": "_client", **threads}}
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [_part("_client", DOOR, patience)],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    # One site is enough for NVFlare: how many are too few is the protocol's to decide.
    meta = {"name": name, "resource_spec": {}, "min_clients": 1, "deploy_map": {"coordinator": ["server"], "site": list(sites)}}
    _write(folder / "meta.json", meta)
    _write(folder / "coordinator" / "config" / "config_fed_server.json", server)
    _write(folder / "site" / "config" / "config_fed_client.json", client)
    if config:
        (folder / "coordinator" / "config" / "pppml.yaml").write_text(config)
    return folder


def _part(name: str, path: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "path": path, "args": dict(arguments)}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")

"""The server side of the NVFlare job: either a bridge's end, or the conductor of the run itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.collab import collab  # type: ignore[import-untyped]

from pppml_core.interfaces.engine import Loss, Walk
from pppml_core.wire.messages import SERVER
from pppml_nvflare import conducting
from pppml_nvflare.bridge import serve
from pppml_nvflare.calls import Caller
from pppml_nvflare.delivery import Delivery
from pppml_nvflare.homes import own_home
from pppml_nvflare.processes import do_without_torch

#: files of a run folder that go with NVFlare's job result to whoever may download it.
RESULTS = ("result.json", "plan.json", "manifest.json", "metrics.jsonl", "model.safetensors", "report.html")


class Coordinator:
    """NVFlare makes it when a job begins.

    Args:
        timeout, silence, parallel: as in the engine's settings; ``parallel`` 0: all sites at once.
        bridge: where a coordinator listens; empty: conduct the run here.
        config: the run's configuration, a file beside the job's own in its ``config`` folder.
    """

    def __init__(self, timeout: float, silence: float, parallel: int = 0, bridge: str = "", config: str = "pppml.yaml") -> None:
        self.timeout, self.silence, self.parallel = timeout, silence, parallel
        self.bridge, self.config = bridge, config
        if bridge:
            do_without_torch()

    @collab.main  # type: ignore[untyped-decorator]
    def conduct(self) -> None:
        """Until the run has ended."""
        proxies = {client.name: client for client in collab.clients}
        caller = Caller(proxies, self.timeout, self.silence)
        context = collab.context
        if self.bridge:
            serve(self.bridge, lambda asked: _do(caller, asked), lambda: bool(context.is_aborted()))
            return
        fl_ctx = collab.fl_ctx
        workspace, job = collab.workspace, fl_ctx.get_job_id()
        config = Path(workspace.get_app_config_dir(job)) / self.config
        folder = self._run(config, CallTransport(caller, self.parallel or len(proxies)))
        results = Path(workspace.get_run_dir(job)) / "pppml"
        results.mkdir(exist_ok=True)
        for name in RESULTS:
            if (folder / name).exists():
                shutil.copyfile(folder / name, results / name)

    def _run(self, config: Path, transport: CallTransport) -> Path:
        from pppml_core import api

        home = own_home(SERVER)
        experiment = api.load(config)
        folder = home / "runs" / experiment.config.run.name
        with conducting.inside(transport, {SERVER: home}):
            return experiment.run(folder, reporters=os.environ.get("PPPML_REPORTERS") != "none").folder


class CallTransport:
    """A transport whose coordinator is NVFlare's own server process."""

    def __init__(self, caller: Caller, parallel: int) -> None:
        self.parallel, self._caller = parallel, caller
        self._delivery = Delivery(self._ask, parallel)

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """All sites at once; replies as they come."""
        return self._delivery(frames)

    def walk(self, path: Sequence[str], frame: bytes, bridge: bool) -> Walk:
        """A relay that the sites hand on, along a path that is in the first one's letter."""
        return self._caller.walk(path[0], frame)

    def clock(self) -> Mapping[str, float]:
        """Sites do not tell."""
        return {}

    def close(self) -> None:
        """The job ends when the run does."""
        self._delivery.close()

    def _ask(self, site: str, frame: bytes) -> bytes | Loss:
        found = self._caller.ask(site, frame)
        return found if isinstance(found, Loss) else found.reply


def _do(caller: Caller, asked: dict[str, Any]) -> Walk:
    if asked["walk"]:
        return caller.walk(asked["site"], asked["frame"])
    found = caller.ask(asked["site"], asked["frame"])
    return Walk(asked["site"], found) if isinstance(found, Loss) else found

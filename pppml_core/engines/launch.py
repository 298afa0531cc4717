"""From a plan and a folder to a finished run: engine, courier, server and conductor put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pppml_core.config import to_plain
from pppml_core.engines.courier import Address, Courier
from pppml_core.federation import checkpoint
from pppml_core.federation.files import only_writer
from pppml_core.federation.plan import Plan
from pppml_core.federation.run import Conductor
from pppml_core.federation.rundir import RunDir, writing
from pppml_core.federation.secret_record import SECRETS, SecretRecord
from pppml_core.federation.server import Server
from pppml_core.federation.stageclock import StageClock
from pppml_core.interfaces.engine import Engine, Job
from pppml_core.wire.messages import SERVER
from pppml_core.wire.transcript import Transcript

Emit = Callable[[Mapping[str, Any]], None]


def launch(plan: Plan, folder: RunDir, engine: Engine, emit: Emit, objects: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run (or go on running) a plan in its folder; the result. A full disk or a dead worker is RunFailed with the way to resume."""
    parts = plan.assembly
    assert parts is not None
    plan.refuse_misfits()
    sites = tuple(s.slug for s in parts.task.sites())
    with writing(folder.path):
        resumed = bool(checkpoint.rounds(folder.checkpoints))
        about = (folder.run_id(), to_plain(plan.config), folder.sites, sites, plan.sizes)
        job = Job(*about, objects or {}, engine.homes, parts, resumed)
    privacy = parts.mechanism.plan(parts.privacy_setting(plan.sizes))
    with (
        writing(folder.path),
        only_writer(folder.id),
        Transcript(folder.path, plan.config.run.transcript != "sizes") as transcript,
    ):
        transport = engine.connect(job)
        try:
            clock = StageClock(transport.clock, getattr(transport, "parallel", 1))

            def note(event: Mapping[str, Any]) -> None:
                clock.note(event)
                emit(event)
                if event["event"] == "run-started":
                    for text in plan.warnings:
                        emit({"event": "warning", "text": text})

            courier = Courier(transport, engine.topology, transcript, note)

            def perform(operations: Any, round: int, attempt: int, manifest: Any) -> Any:
                return courier.perform(operations, Address(job.run, round, attempt), manifest)

            record = SecretRecord(folder.sites / SERVER) if plan.config.run.transcript == SECRETS else None
            server = Server(parts, job.run, sites, plan.max_weight, privacy, job.home(SERVER), folder.checkpoints, perform, note, record)
            result = Conductor(server, folder, transcript, clock, note).run()
            remarks: Callable[[], list[str]] = getattr(transport, "remarks", list)
            for text in remarks():
                note({"event": "warning", "text": text})
            return result
        finally:
            transport.close()

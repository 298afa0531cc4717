"""From a plan and a folder to a finished run: engine, courier, server and conductor put together."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any

from pppml_core.config import to_plain
from pppml_core.engines.courier import Address, Courier
from pppml_core.engines.local import LocalEngine
from pppml_core.errors import RunFailed
from pppml_core.federation.plan import Plan
from pppml_core.federation.run import Conductor
from pppml_core.federation.rundir import RunDir
from pppml_core.federation.server import Server
from pppml_core.federation.stageclock import StageClock
from pppml_core.interfaces.engine import Engine, Job
from pppml_core.interfaces.privacy import PrivacySetting
from pppml_core.learning.training import steps_per_round
from pppml_core.wire.transcript import Transcript

Emit = Callable[[Mapping[str, Any]], None]


def run_id(folder: RunDir) -> bytes:
    """The 16 bytes that name the run: drawn once, kept in the folder."""
    path = folder.path / "run.id"
    if not path.exists():
        path.write_text(os.urandom(16).hex())
    return bytes.fromhex(path.read_text())


def launch(plan: Plan, folder: RunDir, engine: Engine, emit: Emit, objects: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run (or go on running) a plan in its folder; the result. A full disk or a dead worker is RunFailed with the way to resume."""
    parts = plan.assembly
    assert parts is not None
    plan.refuse_misfits()
    sites = tuple(s.slug for s in parts.task.sites())
    job = Job(run_id(folder), to_plain(plan.config), folder.sites, sites, plan.sizes, objects or {})
    steps = {s: steps_per_round(plan.config.training, n) for s, n in plan.sizes.items()}
    calls = parts.personalization.gradient_calls
    cohort = plan.config.run.cohort or len(sites)
    setting = PrivacySetting(plan.config.run.rounds, cohort, plan.sizes, plan.config.training.batch_size, steps, calls)
    hint = f"make room or remove the cause, then go on with --resume {folder.path}"
    transport = engine.connect(job, parts) if isinstance(engine, LocalEngine) else engine.connect(job)
    try:
        with Transcript(folder.path, plan.config.run.transcript == "payloads") as transcript:
            clock = StageClock(transport.clock, getattr(transport, "parallel", 1))

            def note(event: Mapping[str, Any]) -> None:
                clock.note(event)
                emit(event)

            courier = Courier(transport, engine.topology, transcript, note)

            def perform(operations: Any, round: int, attempt: int, manifest: Any) -> Any:
                return courier.perform(operations, Address(job.run, round, attempt), manifest)

            server = Server(parts, job.run, sites, plan.max_weight, parts.mechanism.plan(setting), perform, note)
            return Conductor(server, folder, transcript, clock, note).run()
    except OSError as error:
        reason = "no space is left on the device" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise RunFailed(f"the run cannot be written: {reason}", place=str(error.filename or folder.path), hint=hint) from error
    finally:
        transport.close()

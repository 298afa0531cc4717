"""Where an attack runs: from bytes to bytes. It is given a config, a view and knowledge, and never the truth.

:class:`Attacker` keeps a process of its own, which has nothing but these bytes and ends with the evaluation (``python -m
pppml_core.evidence.attacker``). With live Python objects in the config, which no other process has, the same function is called here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from pppml_core.component import ComponentConfig
from pppml_core.config import resolve, to_plain
from pppml_core.engines.worker import read_frame, write_frame
from pppml_core.errors import PppmlError, RunFailed
from pppml_core.evidence.knowledge import from_message, to_message
from pppml_core.evidence.view import decode_view, encode_view
from pppml_core.federation.assembly import Assembly
from pppml_core.interfaces.attack import AdversaryView, Attack, Budget, Knowledge, Reconstruction
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode, encode, sha256_of

#: an attack that has not answered after so many seconds, and so many times its budget, is ended.
PATIENCE, OVERTIME = 300.0, 20.0


def answer(attack: Attack, view: AdversaryView, seconds: float, knowledge: Knowledge) -> dict[str, Any]:
    """One answer as plain data. Whatever an attack raises is told in ``error``: a broken attack shows nothing about a defence."""
    out: dict[str, Any] = {"guess": {}, "effort": {}, "misfit": "", "error": ""}
    began = time.perf_counter()
    try:
        if misfit := attack.misfit(view, knowledge):
            return {**out, "misfit": misfit}
        made = attack.run(view, Budget(seconds), knowledge)
        if not isinstance(made, Reconstruction):
            return {**out, "error": f"it returned {type(made).__name__} instead of a Reconstruction"}
        # What is no plain data, and so cannot be told, is an error of the attack.
        out |= decode(encode({"guess": dict(made.guess), "effort": {name: float(value) for name, value in made.effort.items()}}))
    except PppmlError as error:
        out["error"] = str(error)
    except Exception as error:
        out["error"] = f"{type(error).__name__}: {error}"
        print(traceback.format_exc(), file=sys.stderr)
    out["effort"] = {"seconds": time.perf_counter() - began, **out["effort"]}
    return out


class Attacker:
    """Answers for the attacks of one run, in a process of its own where the config can be told in plain data.

    Args:
        parts: of the run.
        live: whether live Python objects are among them.
        patience: seconds, beyond the budget many times over, after which an attack that does not answer is ended.
    """

    def __init__(self, parts: Assembly, live: bool = False, patience: float = PATIENCE) -> None:
        self._parts, self._live, self._patience = parts, live, patience
        self._process: subprocess.Popen[bytes] | None = None
        self._told: dict[str, bytes] = {}

    def answer(self, attack: ComponentConfig, view: AdversaryView, seconds: float, knowledge: Knowledge) -> dict[str, Any]:
        """See :func:`answer`; ``ended``: its process died, or took too long and was ended.

        Raises RunFailed where it cannot build the parts of the run.
        """
        # The same bytes in either case: what is not in them an attack cannot have.
        seen, about = encode_view(view), to_message(knowledge)
        if self._live:
            built: Attack = self._parts.registry.build("attack", attack)
            return answer(built, decode_view(seen), seconds, from_message(decode(encode(about)), self._parts))
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        limit, late, began = self._patience + OVERTIME * seconds, threading.Event(), time.perf_counter()

        def end() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(limit, end)
        clock.daemon = True
        clock.start()
        try:
            for name in ("config", "public", "sites_public"):
                value = to_plain(self._parts.config) if name == "config" else about.pop(name)
                if (digest := sha256_of({"": value})) != self._told.get(name):
                    write_frame(process.stdin, encode({name: value}))
                    self._told[name] = digest
            request = {"attack": attack.model_dump(mode="json"), "view": seen, "about": about, "seconds": seconds}
            write_frame(process.stdin, encode(request))
            answered = dict(decode(read_frame(process.stdout)))
        except (OSError, EOFError):
            self.close()
            # A process that dies or hangs is an attack that failed for this victim, as one that raises is.
            why = f"no answer within {limit:.0f} s" if late.is_set() else f"its process ended (exit code {process.returncode})"
            return {"guess": {}, "effort": {"seconds": time.perf_counter() - began}, "misfit": "", "error": why, "ended": True}
        finally:
            clock.cancel()
        if failed := answered.pop("failed", ""):
            self.close()
            text = f"the process of the attack {attack.use} cannot run it: {failed}"  # type: ignore[attr-defined]
            raise RunFailed(text, place="attack", hint="it builds the run's parts anew, from what is installed and the config")
        return answered

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "pppml_core.evidence.attacker"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            assert self._process.stdin is not None
            write_frame(self._process.stdin, encode({"path": [p for p in sys.path if p]}))
        return self._process

    def close(self) -> None:
        """End the process."""
        process, self._process, self._told = self._process, None, {}
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError, AttributeError):
                pipe.close()  # type: ignore[union-attr]
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def main() -> int:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source = sys.stdin.buffer
    target = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    path = decode(read_frame(source))["path"]
    sys.path[:] = [*path, *[p for p in sys.path if p not in path]]

    import torch

    torch.set_num_threads(1)
    registry = Registry.discover()
    held: dict[str, Any] = {}
    while True:
        try:
            frame = decode(read_frame(source))
        except EOFError:
            return 0
        if "attack" not in frame:
            held.update(frame)
            held.pop("parts" if "config" in frame else "", None)
            continue
        try:
            if "parts" not in held:
                held["parts"] = Assembly.build(resolve(held["config"], registry=registry), registry)
            reply = _reply(frame, held)
        except Exception as error:
            print(traceback.format_exc(), file=sys.stderr)
            reply = {"failed": str(error) if isinstance(error, PppmlError) else f"{type(error).__name__}: {error}"}
        write_frame(target, encode(reply))


def _reply(frame: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    parts: Assembly = held["parts"]
    config = resolve({**to_plain(parts.config), "attacks": [frame["attack"]]}, registry=parts.registry).attacks[0]
    knowledge = from_message({**frame["about"], **held}, parts)
    return answer(parts.registry.build("attack", config), decode_view(frame["view"]), frame["seconds"], knowledge)


if __name__ == "__main__":
    raise SystemExit(main())

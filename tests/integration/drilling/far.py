"""Federations of NVFlare and Flower on this machine, as processes of their own, and the hands that kill and stop them."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest

#: seconds of these drills for an answer: longer than a process of a site takes to start, under load.
TIMEOUT = 90
ENGINES: dict[str, dict[str, Any]] = {
    "nvflare": {"use": "nvflare", "environment": "poc", "timeout": TIMEOUT, "silence": 60},
    "flower": {"use": "flower", "environment": "processes", "timeout": TIMEOUT},
}
LIBRARY = {"nvflare": "nvflare", "flower": "flwr"}
#: words in the command line of the process in which a site lives.
LIVES = {"nvflare": "pppml_nvflare.lodging", "flower": "pppml_flower.site"}


def needed(engine: str) -> None:
    for module in (LIBRARY[engine], f"pppml_{engine}"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def processes(*words: str) -> list[psutil.Process]:
    """Descendants of this process whose command line holds all these words, each as the end of an argument or a module's name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            line = process.cmdline()
            if all(any(part == word or part.endswith(f"/{word}") for part in line) for word in words):
                found.append(process)
    return found


def site_process(engine: str, site: str) -> list[psutil.Process]:
    """The process in which a site lives, with those that it started."""
    return [p for found in processes(LIVES[engine], site) for p in (found, *found.children(recursive=True))]


def kill(found: list[psutil.Process]) -> None:
    """``kill -9``."""
    assert found
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=10)


def stop_for(seconds: float, find: Callable[[], list[psutil.Process]]) -> None:
    """SIGSTOP, and SIGCONT so many seconds later."""
    found = find()
    assert found
    for process in found:
        process.suspend()

    def go_on() -> None:
        time.sleep(seconds)
        for process in found:
            with suppress(psutil.Error):
                process.resume()

    threading.Thread(target=go_on, daemon=True).start()


def carrier(engine: str) -> list[psutil.Process]:
    """NVFlare's server, or the SuperLink, with what it started."""
    found = processes("pppml_flower.superlink") if engine == "flower" else processes("nvflare.private.fed.app.server.server_train")
    return [p for one in found for p in (one, *one.children(recursive=True))]


def restarter(engine: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Starts a killed site again. An NVFlare client does that by itself; a Flower node is started again by its people."""
    if engine != "flower":
        return lambda site: None
    from pppml_flower import local_federation as module

    made: list[Any] = []
    start = module.LocalFederation.start

    def noted(self: Any) -> None:
        made.append(self)
        start(self)

    monkeypatch.setattr(module.LocalFederation, "start", noted)
    return lambda site: made[-1].start_node(site)

"""Federations of NVFlare and Flower on this machine, as processes of their own, and the hands that kill and stop them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pppml_core.testing.proxy import Proxy

#: seconds of these drills for an answer: longer than a process of a site takes to start, under load.
TIMEOUT = 180
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
    """``kill -9``; all are dead when it returns, though whoever started them may not have taken note yet."""
    assert found
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    until = time.monotonic() + 10
    while any(map(alive, found)) and time.monotonic() < until:
        time.sleep(0.02)


def room(found: list[psutil.Process], bytes: int) -> None:
    """How long files may be that these processes write from now on; 0: a disk that is full."""
    assert found
    for process in found:
        process.rlimit(psutil.RLIMIT_FSIZE, (bytes, psutil.RLIM_INFINITY))


def alive(process: psutil.Process) -> bool:
    """Also one whose first thread has ended and others not yet: its parent cannot know so far."""
    with suppress(psutil.Error):
        return bool(process.is_running()) and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    return False


@contextmanager
def behind_a_proxy(
    engine: str, names: Sequence[str], site: str, folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, Any], list[Proxy]]]:
    """Settings of the engine with which one site reaches the server, or SuperLink, through a proxy, and that proxy once it stands."""
    proxies: list[Proxy] = []
    with ExitStack() as stack:
        stack.callback(lambda: [proxy.close() for proxy in proxies])
        if engine == "flower":
            _flower_behind(site, proxies, patch)
            yield ENGINES[engine], proxies
        else:
            kit, homes = stack.enter_context(_nvflare_behind(names, site, folder, proxies))
            yield {**ENGINES[engine], "kit": str(kit), "homes": str(homes)}, proxies


def _flower_behind(site: str, proxies: list[Proxy], patch: pytest.MonkeyPatch) -> None:
    from pppml_flower.local_federation import LocalFederation

    own = LocalFederation._node

    def through(federation: LocalFederation, name: str) -> Any:
        if name != site:
            return own(federation, name)
        if not proxies:
            proxies.append(Proxy(federation.port))
        return own(federation, name).model_copy(update={"superlink": f"127.0.0.1:{proxies[0].port}"})

    patch.setattr(LocalFederation, "_node", through)


@contextmanager
def _nvflare_behind(names: Sequence[str], site: str, folder: Path, proxies: list[Proxy]) -> Iterator[tuple[Path, Path]]:
    from pppml_core.engines.parties import acquaint
    from pppml_nvflare.kits import admit, environment
    from pppml_nvflare.poc import Poc

    poc = Poc(folder, names, folder / "homes")
    acquaint(poc.homes, ("server", *names))
    poc.prepare()
    # NVFlare signs what a kit says of the server's address, so the kits are made anew with the other one.
    project = json.loads((folder / "project.yml").read_text())
    people = {one["name"]: one for one in project["participants"]}
    proxies.append(Proxy(next(one["fed_learn_port"] for one in people.values() if one["type"] == "server")))
    people[site]["connect_to"] = {"host": "localhost", "port": proxies[0].port}
    (folder / "project.yml").write_text(json.dumps(project))
    shutil.rmtree(folder / "kits")
    line = [sys.executable, "-m", "nvflare.cli", "provision", "-p", str(folder / "project.yml"), "-w", str(folder / "kits")]
    subprocess.run(line, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, check=True)
    for party in ("server", *names):
        admit(poc.kit_of(party), storage=folder / "storage")
    try:
        poc.start()
        yield poc.kit, poc.homes
    finally:
        poc.stop()


def carrier(engine: str) -> list[psutil.Process]:
    """NVFlare's server, or the SuperLink, with what it started."""
    found = processes("pppml_flower.superlink") if engine == "flower" else processes("nvflare.private.fed.app.server.server_train")
    return [p for one in found for p in (one, *one.children(recursive=True))]


def restarter(engine: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """Starts a killed site again, and waits until it is connected. An NVFlare client does that by itself, before a round ends; a Flower
    node is started again by its people, and while the SuperLink takes the killed one for connected it is let in after a minute only.
    """
    if engine != "flower":
        return lambda site: None, lambda site: None
    from pppml_flower import local_federation as module

    made: list[Any] = []
    before: dict[str, int] = {}
    start = module.LocalFederation.start

    def noted(self: Any) -> None:
        made.append(self)
        start(self)

    def connections(site: str) -> int:
        return (made[-1].folder / f"{site}.log").read_text(errors="replace").count("SuperNode ID")

    def restart(site: str) -> None:
        before[site] = connections(site)
        made[-1].start_node(site)

    def back(site: str) -> None:
        until = time.monotonic() + 150
        while site in before and connections(site) <= before[site]:
            assert time.monotonic() < until, made[-1].words(site)
            time.sleep(0.1)

    monkeypatch.setattr(module.LocalFederation, "start", noted)
    return restart, back

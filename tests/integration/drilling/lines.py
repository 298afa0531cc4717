"""The lines between the coordinator and the sites of `processes`, each through a proxy of its own; and sites that are started otherwise."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drilling.runs import Event
from pppml_core.engines import processes
from pppml_core.testing.proxy import Proxy
from pppml_core.wire.codec import decode_message

STRANGE = Path(__file__).resolve().parent / "strange_site.py"


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch, *, record: bool = False) -> Iterator[dict[str, Proxy]]:
    """Site -> the proxy on its line; made when a run starts the site."""
    found: dict[str, Proxy] = {}
    settings = processes._SiteProcess._settings

    def redirected(site):
        given = settings(site)
        if site.name not in found:
            found[site.name] = Proxy(given["port"], record=record)
        return {**given, "port": found[site.name].port}

    monkeypatch.setattr(processes._SiteProcess, "_settings", redirected)
    try:
        yield found
    finally:
        for proxy in found.values():
            proxy.close()


def patience(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The engine's timeout from round 2 on. In round 1 processes load their libraries, for as long as the machine is busy otherwise."""
    asked = processes._SiteProcess._asked

    def waiting(site, frame, strike):
        if decode_message(frame).round > 1:
            site._config = site._config.model_copy(update={"timeout": seconds})
        return asked(site, frame, strike)

    monkeypatch.setattr(processes._SiteProcess, "_asked", waiting)


def strange_sites(monkeypatch: pytest.MonkeyPatch, *about: str) -> None:
    """Start the sites as :mod:`strange_site` does."""
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, str(STRANGE), *about])


def stall_for(seconds: float, proxy: Proxy) -> None:
    """Nothing passes for so long; returns at once."""
    proxy.stall()
    timer = threading.Timer(seconds, proxy.go_on)
    timer.daemon = True
    timer.start()


def at(act: Callable[[], None], **wanted: object) -> Callable[[Event], None]:
    """Do something at the first event that contains this."""
    done: list[bool] = []

    def watch(event: Event) -> None:
        if not done and all(event.get(key) == value for key, value in wanted.items()):
            done.append(True)
            act()

    return watch

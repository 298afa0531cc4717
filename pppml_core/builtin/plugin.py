"""The built-ins' hooks: the core uses the same door as every plugin."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core.builtin import configs
from pppml_core.builtin.console import ConsoleConfig
from pppml_core.builtin.jsonl import JsonlConfig
from pppml_core.component import Component
from pppml_core.engines.config import LocalConfig, ProcessesConfig
from pppml_core.hookspecs import hookimpl


@hookimpl
def pppml_aggregators() -> Sequence[Component]:
    """``plain``."""
    return [Component("plain", configs.PlainConfig, "pppml_core.builtin.plain:Plain", "sum in the clear: the server sees every update")]


@hookimpl
def pppml_personalizations() -> Sequence[Component]:
    """``fedavg`` and ``local-only``."""
    return [
        Component(
            "fedavg",
            configs.FedAvgConfig,
            "pppml_core.builtin.fedavg:FedAvg",
            "one model for all: the weighted mean of local updates",
            cites=("McMahan et al. 2017, arXiv:1602.05629", "Reddi et al. 2021, arXiv:2003.00295"),
        ),
        Component(
            "local-only",
            configs.LocalOnlyConfig,
            "pppml_core.builtin.fedavg:LocalOnly",
            "every site alone: the lower bracket, shares nothing",
        ),
    ]


@hookimpl
def pppml_privacy_mechanisms() -> Sequence[Component]:
    """``none``."""
    return [Component("none", configs.NoPrivacyConfig, "pppml_core.builtin.none:NoPrivacy", "no mechanism, no claim")]


@hookimpl
def pppml_attacks() -> Sequence[Component]:
    """``distinguish``, ``read-out``."""
    return [
        Component(
            "read-out",
            configs.ReadOutConfig,
            "pppml_core.builtin.read_out:ReadOut",
            "a site's own update, as far as the adversary decodes the secure sum",
        ),
        Component(
            "distinguish",
            configs.DistinguishConfig,
            "pppml_core.builtin.distinguish:Distinguish",
            "whether the messages of a secure sum tell which of two sites gave what; all keys together as control",
            cites=("Katz and Lindell 2020, Introduction to Modern Cryptography, section 3.4 (indistinguishability)",),
        ),
    ]


@hookimpl
def pppml_tasks() -> Sequence[Component]:
    """``tiny``."""
    return [
        Component("tiny", configs.TinyTaskConfig, "pppml_core.builtin.tiny:TinyTask", "small synthetic images, for tests and first steps")
    ]


@hookimpl
def pppml_models() -> Sequence[Component]:
    """``tiny-net``."""
    return [Component("tiny-net", configs.TinyNetConfig, "pppml_core.builtin.tiny:TinyNet", "two convolutions, for tests and first steps")]


@hookimpl
def pppml_engines() -> Sequence[Component]:
    """``local`` and ``processes``."""
    return [
        Component(
            "local", LocalConfig, "pppml_core.engines.local:LocalEngine", "all sites on this machine, one after another or in workers"
        ),
        Component(
            "processes",
            ProcessesConfig,
            "pppml_core.engines.processes:ProcessesEngine",
            "each site a process of its own, with its own keys and policy, over loopback sockets",
        ),
    ]


@hookimpl
def pppml_reporters() -> Sequence[Component]:
    """``console`` and ``jsonl``."""
    return [
        Component("console", ConsoleConfig, "pppml_core.builtin.console:Console", "progress and tables in the terminal"),
        Component("jsonl", JsonlConfig, "pppml_core.builtin.jsonl:Jsonl", "every event as a line of events.jsonl"),
    ]

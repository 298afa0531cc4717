"""The network of a bundle: in MONAI's config form where its factory tells it, else as TorchScript. Nothing that needs pppml."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pppml_core.errors import ConfigError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.bundle.targets import check_targets

SCRIPT = "models/model.ts"
#: What expressions of the configs may name beside torch, numpy and monai.
IMPORTS = ["$import collections", "$import glob", "$import os"]
#: Largest difference of logits that is taken for rounding, relative to the largest logit.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Network:
    """``sections`` of the configs, ``network_def`` among them; ``script`` is the TorchScript file they load, where they load one."""

    sections: Mapping[str, Any]
    script: bytes | None = None


def describe(factory: ModelFactory, spec: TaskSpec, model: torch.nn.Module) -> Network:
    """How MONAI alone builds the network of ``model`` (float32, on the CPU, in evaluation mode), tried out before it is believed.

    Raises ConfigError where it can be told neither as a config nor as TorchScript, or where what is told is another network.
    """
    given = factory.definition(spec)
    if given is None:
        return _traced(spec, model)
    name = type(factory).__name__
    if "network_def" not in given:
        raise ConfigError(f"the definition that {name} gives has no `network_def`", place="model", hint="name the network's section so")
    hint = f"correct {name}.definition; without one the network is exported as TorchScript"
    try:
        sections: dict[str, Any] = json.loads(json.dumps(given))
        check_targets(sections, f"the definition that {name} gives", "model")
        built = parsed({"imports": IMPORTS, **sections}, "network_def")
        built.load_state_dict(model.state_dict())
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError, ModuleNotFoundError) as error:
        raise ConfigError(f"the definition that {name} gives cannot be used: {_short(error)}", place="model", hint=hint) from error
    if "pppml" in json.dumps(sections):
        raise ConfigError(f"the definition that {name} gives needs pppml", place="model", hint="name torch and MONAI only")
    if (off := _difference(model, built.eval(), spec)) > TOLERANCE:
        raise ConfigError(f"the definition that {name} gives is another network: outputs differ by {off:.2g}", place="model", hint=hint)
    return Network(sections)


def parsed(config: Mapping[str, Any], name: str) -> Any:
    """A part of a MONAI config, built."""
    from monai.bundle import ConfigParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a config can run code: this one is ours
        return ConfigParser(dict(config)).get_parsed_content(name)


def _traced(spec: TaskSpec, model: torch.nn.Module) -> Network:
    """TorchScript of a network that is not told as a config, traced with one image and tried with two."""
    hint = "write `definition` for its factory (pppml_core.interfaces.model), or use a network that follows no data in its forward"
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # tracing warns of whatever might depend on the data; what counts is tried below
            script = torch.jit.trace(model, _images(spec, 1), check_trace=False)
            stored = _without_origins(script)
            again = torch.jit.load(io.BytesIO(stored)).eval()
        off = _difference(model, again, spec)
    except Exception as error:  # a network's forward and torch's tracer raise whatever they like
        reason = f"the network has no definition for MONAI and cannot be traced as TorchScript: {_short(error)}"
        raise ConfigError(reason, place="model", hint=hint) from error
    if off > TOLERANCE:
        raise ConfigError(f"traced as TorchScript, the network is another one: outputs differ by {off:.2g}", place="model", hint=hint)
    # Tensors that the forward makes are made where it was traced, so the whole bundle stays there.
    here = "$torch.device('cpu')"
    return Network({"device": here, "network_def": f"$torch.jit.load(@bundle_root + '/{SCRIPT}', map_location=@device)"}, stored)


def _without_origins(script: torch.jit.ScriptModule) -> bytes:
    """The TorchScript file without the tables that say which line of which file on this machine each operation came from."""
    whole, kept = io.BytesIO(), io.BytesIO()
    torch.jit.save(script, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(kept, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            if not item.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(item.filename), old.read(item))
    return kept.getvalue()


def _difference(model: torch.nn.Module, other: torch.nn.Module, spec: TaskSpec) -> float:
    """Largest difference of the outputs for two random images, relative to the largest output."""
    images = _images(spec, 2)
    with torch.no_grad():
        one, two = model(images), other(images)
    if not isinstance(two, torch.Tensor) or one.shape != two.shape:
        return float("inf")
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-6))


def _images(spec: TaskSpec, count: int) -> torch.Tensor:
    return torch.rand((count, spec.channels, *spec.size), generator=torch.Generator().manual_seed(count)) * 2 - 1


def _short(error: BaseException) -> str:
    """The innermost reason, on one line: MONAI wraps what a constructor says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

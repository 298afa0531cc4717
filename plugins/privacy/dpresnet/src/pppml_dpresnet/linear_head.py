"""``linear-head``: a linear layer on features of a network that is not trained.

Noise grows with the square root of the number of trained weights, so a few thousand weights on good features can beat millions trained
from scratch (Tramer and Boneh 2021, arXiv:2011.11660). The features must come from public data or from data that the claim leaves out:
what they were trained on is not protected here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from pppml_core.errors import ConfigError, PppmlError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_core.randomness import seeded
from pppml_dpresnet.another import factory
from pppml_dpresnet.config import LinearHeadConfig
from pppml_dpresnet.fitting import kind_misfits
from pppml_dpresnet.frozen import frozen

RANDOM = "random"


class LinearHead(nn.Module):
    """``head(standardized(features(images)))``. The features stay in evaluation mode and get no gradient; the head starts at zero."""

    def __init__(self, features: nn.Module, width: int, classes: int, *, standardize: bool) -> None:
        super().__init__()
        self.features = frozen(features)
        self.standardized = nn.LayerNorm(width, elementwise_affine=False) if standardize else nn.Identity()
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> LinearHead:
        """The features never leave evaluation mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, *size)``."""
        with torch.no_grad():
            found = self.standardized(self.features(images))
        logits: torch.Tensor = self.head(found)
        return logits


class LinearHeadModel(ModelFactory):
    """``{use: linear-head, features: small-cnn, weights: run/model.safetensors}``; 2-D or 3-D as the features are."""

    config: LinearHeadConfig

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Wrong kind of task, features that do not fit the task, a weights file that does not fit the features."""
        try:
            inner = factory(self.config.features, self.config.args, "model.features")
            if out := kind_misfits("linear-head", spec) or inner.misfits(spec):
                return out
            with seeded(0):  # a constructor draws weights; nobody else's stream may notice
                self.build(spec)
        except PppmlError as error:
            return [str(error)]
        return []

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network. Raises ConfigError where features, weights file and task do not fit together."""
        features = factory(self.config.features, self.config.args, "model.features").build(spec)
        width = _take_off_head(features, len(spec.classes))
        if self.config.weights != RANDOM:
            _load(features, Path(str(self.config.weights)), self.config.sha256)
        try:
            model = LinearHead(features, width, len(spec.classes), standardize=self.config.standardize)
        except ValueError as error:
            raise ConfigError(str(error), place="model.features", hint="use features with group normalization") from error
        if (gives := _output(model.features, spec)) != str((1, width)):
            reason = f"without its last linear layer {self.config.features} gives {gives} for one image, not {(1, width)}"
            raise ConfigError(reason, place="model.features", hint="use a network that ends with its linear layer")
        return model


def _output(network: nn.Module, spec: TaskSpec) -> str:
    """Shape of what the network gives for one image, or what it raises."""
    try:
        with torch.no_grad():
            return str(tuple(network(torch.zeros(1, spec.channels, *spec.size)).shape))
    except Exception as error:  # a network's forward raises whatever it likes
        return f"an error ({' '.join(str(error).split())[:100]})"


def _take_off_head(network: nn.Module, classes: int) -> int:
    """Puts an identity in place of the last linear layer with as many outputs as classes; returns how many inputs it had."""
    found = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not found or not found[-1][0]:
        reason = f"the network has no linear layer for {classes} classes that could be taken off"
        raise ConfigError(reason, place="model.features", hint="use a classifier that ends with a linear layer")
    name, head = found[-1]
    network.set_submodule(name, nn.Identity())
    return head.in_features


def _load(network: nn.Module, path: Path, sha256: str | None) -> None:
    """Every tensor of the network from a safetensors file; what else is in the file, the old head for one, is not used."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    place = "model.weights"
    hint = "give the safetensors file of a run with the same network, e.g. its model.safetensors, not made of these images without noise"
    try:
        data = path.read_bytes()
        given = load(data)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", place=place, hint=hint) from error
    if sha256 is not None and (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise ConfigError(f"{path} has SHA-256 {digest}, not {sha256}", place=place, hint="get the file that all sites agreed on")
    state = network.state_dict()
    wrong = [f"no {name}" for name in state if name not in given]
    wrong += [f"{n} is {tuple(given[n].shape)}, not {tuple(t.shape)}" for n, t in state.items() if n in given and given[n].shape != t.shape]
    wrong += [f"{name} has values that are not finite" for name in state if name in given and not given[name].isfinite().all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(f"{path} does not fit the features: {'; '.join(wrong[:3])}{more}", place=place, hint=hint)
    network.load_state_dict({name: given[name] for name in state})

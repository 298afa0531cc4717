"""A model that is any callable or torch module: what ``model: "my_file:MyNet"`` and a module given in Python become."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

from pppml_core.component import ComponentConfig
from pppml_core.errors import ConfigError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec

if TYPE_CHECKING:
    import torch


class CallableModel(ModelFactory):
    """Calls ``make(**args)``, with ``spec=`` (the task's :class:`TaskSpec`) too where it takes a parameter of that name.

    A ready ``torch.nn.Module`` is copied at each build, so its present weights are the initial weights. Raises ConfigError where the
    arguments do not fit or the result is not a torch module.
    """

    def __init__(self, config: ComponentConfig, make: Any, place: str = "model") -> None:
        super().__init__(config)
        self.make, self.place = make, place
        self.args: dict[str, Any] = dict(config.model_extra or {})
        if not callable(make):
            reason = f"{type(make).__name__} is neither a torch module nor callable"
            raise ConfigError(reason, place=place, hint="give a torch.nn.Module, its class, or a function that returns one")

    def build(self, spec: TaskSpec) -> torch.nn.Module:
        """The network of this task."""
        import torch

        if isinstance(self.make, torch.nn.Module):
            if self.args:
                raise ConfigError("args are given, but the module is already built", place=f"{self.place}.args", hint="give its class")
            return copy.deepcopy(self.make)
        network = self.make(**self._arguments(spec))
        if not isinstance(network, torch.nn.Module):
            reason = f"returned {type(network).__name__}, not a torch.nn.Module"
            raise ConfigError(reason, place=self.place, hint="return the network")
        return network

    def _arguments(self, spec: TaskSpec) -> dict[str, Any]:
        try:
            signature = inspect.signature(self.make)
        except ValueError:  # callables written in C may have no signature to look at
            return self.args
        args = {**self.args, "spec": spec} if "spec" in signature.parameters and "spec" not in self.args else self.args
        try:
            signature.bind(**args)
        except TypeError as error:
            reason, hint = f"it cannot be called with these args: {error}", "write {use: module:Name, args: {...}}"
            raise ConfigError(reason, place=f"{self.place}.args", hint=hint) from error
        return args

"""``group-normed``: another network, made fit for per-example gradients."""

from __future__ import annotations

from torch import nn

from pppml_core.errors import ConfigError, PppmlError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_dpresnet.another import factory
from pppml_dpresnet.config import GroupNormedConfig
from pppml_dpresnet.convert import group_norm


class GroupNormedModel(ModelFactory):
    """``{use: group-normed, of: densenet, args: {variant: 121}}``."""

    config: GroupNormedConfig

    def _inner(self) -> ModelFactory:
        return factory(self.config.of, self.config.args, "model.of")

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Those of the network itself, or why there is none."""
        try:
            return self._inner().misfits(spec)
        except PppmlError as error:
            return [str(error)]

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network, converted by :func:`.convert.group_norm`. Raises ConfigError where it cannot be."""
        try:
            return group_norm(self._inner().build(spec), self.config.groups)
        except ValueError as error:
            raise ConfigError(str(error), place="model.of", hint="use layers whose channels are given") from error

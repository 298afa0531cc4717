"""What the suites of learning rules share: settings, a site's rounds without a server, and how states are compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch

from pppml_core.interfaces.personalization import GradientRule, LocalData, Personalization, PersonalState, Update
from pppml_core.learning.arrays import load_state, snapshot
from pppml_core.learning.gradients import plain_gradients
from pppml_core.testing.local_data import FixedData, small_network
from pppml_core.testing.suite import Suite


class Moment(NamedTuple):
    """What a site has after a round: its update, its state, what of the model stays with it, and its own model's weights."""

    update: Update
    state: Any
    personal: Mapping[str, torch.Tensor]
    adapted: Mapping[str, torch.Tensor] | None


class RuleSuite(Suite):
    """Settings and helpers of :class:`~pppml_core.testing.PersonalizationSuite`."""

    #: settings that turn all rates of the rule's own off.
    zero_rates: ClassVar[Mapping[str, Any]] = {}
    #: those of them that move what is shared, where that is not the training's learning rate.
    zero_outer_rates: ClassVar[Mapping[str, Any]] = {}

    # -- helpers ----------------------------------------------------------------------------------------------------------------------

    def network(self) -> torch.nn.Module:
        """A small network with BatchNorm and a head named ``head``."""
        return small_network()

    def data(self, site: str = "a", **options: Any) -> FixedData:
        """A site's training data."""
        return FixedData(site, **options)

    def gradients(self) -> GradientRule:
        """Autograd on the cross-entropy."""
        return plain_gradients(torch.nn.functional.cross_entropy)

    def initial(self) -> dict[str, torch.Tensor]:
        """The whole state before the first round."""
        return snapshot(self.network())

    def shared(self, model: torch.nn.Module | None = None) -> list[str]:
        """Names of the floating tensors that are shared."""
        rule, network = self.make(), model or self.network()
        return [n for n, t in network.state_dict().items() if t.is_floating_point() and rule.shared(n, network)]

    def shared_parameters(self) -> list[str]:
        """Those of them that are trained."""
        parameters = dict(self.network().named_parameters())
        return [n for n in self.shared() if n in parameters]

    def weights(self, network: torch.nn.Module | None = None) -> dict[str, torch.Tensor]:
        """The shared weights of a network as the server holds them; default: those before the first round."""
        network = network or self.network()
        shared = self.shared(network)
        return {n: t for n, t in snapshot(network).items() if n in shared}

    def other_weights(self) -> dict[str, torch.Tensor]:
        """Shared weights of which every number is another one."""
        return {n: w + torch.linspace(0.1, 1, w.numel()).reshape(w.shape) for n, w in self.weights().items()}

    def updated(self, rule: Personalization, site: str = "a", **options: Any) -> tuple[Update, PersonalState, torch.nn.Module]:
        """A first round of a site, from the network's initial weights."""
        model = self.network()
        update, state = rule.local_update(model, self.data(site, **options), self.gradients(), rule.init(self.network()))
        return update, state, model

    def site(self, name: str = "a", model: torch.nn.Module | None = None, **options: Any) -> SiteDouble:
        """A site between rounds; ``model`` is the one network of the process it lives in, default one of its own."""
        return SiteDouble(self, name, model or self.network(), options)


class SiteDouble:
    """A site as a run has it: its state and its personal tensors are data, and the network is whoever's turn it is.

    ``options`` are those of its training data.
    """

    def __init__(self, suite: RuleSuite, name: str, model: torch.nn.Module, options: Mapping[str, Any]) -> None:
        self.suite, self.name, self.model, self.options = suite, name, model, dict(options)
        shared = suite.shared()
        self.personal = {n: t for n, t in suite.initial().items() if n not in shared}
        self.state: Any = through_data(suite.make().init(suite.network()))

    def data(self, **options: Any) -> FixedData:
        """Its training data in a new round."""
        return self.suite.data(self.name, **{**self.options, **options})

    def place(self, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """The network with the shared weights and this site's own."""
        load_state(self.model, weights, self.personal)
        return self.model

    def update(
        self, rule: Personalization, weights: Mapping[str, torch.Tensor], gradients: GradientRule | None = None, **options: Any
    ) -> Update:
        """One round of local training; what it leaves is kept as a checkpoint keeps it. ``options``: of this round's data."""
        model = self.place(weights)
        update, state = rule.local_update(model, self.data(**options), gradients or self.suite.gradients(), self.state)
        self.state = through_data(state)
        self.personal = {n: t for n, t in snapshot(model).items() if n in self.personal}
        return Update(copy.deepcopy(dict(update.delta)), dict(update.metrics))

    def adapted(self, rule: Personalization, weights: Mapping[str, torch.Tensor], data: LocalData | None = None) -> torch.nn.Module:
        """This site's own model, apart from the process's network."""
        return copy.deepcopy(rule.adapt(self.place(weights), data or self.data(), self.suite.gradients(), self.state))

    def round(self, rule: Personalization, weights: Mapping[str, torch.Tensor], *, adapt: bool = True) -> Moment:
        """Training and, as at the end of a round, the site's own model."""
        update = self.update(rule, weights)
        own = snapshot(self.adapted(rule, weights)) if adapt else None
        return Moment(update, copy.deepcopy(self.state), copy.deepcopy(self.personal), own)


def through_data(state: Any) -> Any:
    """As a checkpoint: tensors to arrays and back."""
    if isinstance(state, torch.Tensor):
        return torch.from_numpy(state.detach().cpu().numpy().copy())
    return {k: through_data(v) for k, v in state.items()} if isinstance(state, Mapping) else state


def equal(one: Any, other: Any) -> bool:
    """Equal bit for bit, in every name and value."""
    if isinstance(one, Update):
        return isinstance(other, Update) and equal(one.delta, other.delta) and equal(one.metrics, other.metrics)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    return bool(one == other)

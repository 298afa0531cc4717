"""Sites with quadratic losses: each order goes to the point it should, known in closed form; FedAvg's is another one.

Site i has ``f_i(w) = (w - c_i)^T A_i (w - c_i) / 2`` with ``A_i`` symmetric, its eigenvalues below ``L``, and ``alpha <= 1/L``. A gradient
step gives ``w_i - c_i = (I - alpha A_i)(w - c_i)``, so with ``S_i = I - alpha A_i`` (which commutes with ``A_i``):

- FedAvg (one step a round) rests where ``sum A_i (w - c_i) = 0``.
- Per-FedAvg minimizes ``F(w) = sum f_i(w_i) = 1/2 sum (w - c_i)^T S_i A_i S_i (w - c_i)`` and rests where
  ``sum S_i A_i S_i (w - c_i) = 0``.
- First order rests where the mean gradient at the adapted points is zero: ``sum A_i S_i (w - c_i) = 0``, which is no minimum of F.
- Differences of gradients are exact on quadratics: Hessian-free rests where the exact order does.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.config.run_config import TrainingSection
from pppml_core.interfaces.personalization import Update
from pppml_core.learning.arrays import difference, load_state, snapshot
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.training import LocalTraining, TensorCache
from pppml_core.randomness import Seeds
from pppml_perfedavg.config import PerFedAvgConfig
from pppml_perfedavg.perfedavg import PerFedAvg

ALPHA, BETA, ROUNDS = 0.25, 1.0, 60
SIZES = (3, 3, 3)


def sites():
    """Curvatures ``(3, 2, 2)`` with eigenvalues 1/4 to 2, and optima ``(3, 2)``; exact in float32, in which examples are held."""
    turned = np.array([[1.125, 0.875], [0.875, 1.125]])
    return np.array([np.diag([2.0, 0.25]), np.diag([0.5, 1.5]), turned]), np.array([[1.0, 0.0], [-1.0, 2.0], [3.0, -2.0]])


def resting_point(matrices, optima):
    """``w`` with ``sum M_i (w - c_i) = 0``."""
    return np.linalg.solve(matrices.sum(0), np.einsum("ijk,ik->j", matrices, optima))


def closed_forms(alpha=ALPHA):
    a, c = sites()
    s = np.eye(2) - alpha * a
    return {"fedavg": resting_point(a, c), "first": resting_point(a @ s, c), "exact": resting_point(s @ a @ s, c)}


class Quadratic(torch.nn.Module):
    """Parameters ``w``; an image ``(1, 2, 3)`` holds A and c, and the output is its loss."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, images):
        off = self.w - images[:, 0, :, 2]
        return 0.5 * torch.einsum("bi,bij,bj->b", off, images[:, 0, :, :2], off)


def federate(rule, rounds=ROUNDS, lr=BETA, steps=1):
    """Rounds of every site's ``local_update`` on real training data, and the server's ``server_update``. Every batch is alike."""
    training = TrainingSection(steps=steps, batch_size=1, device="cpu", precision="float64", optimizer={"use": "sgd", "lr": lr})
    held = []
    for a, c, size in zip(*sites(), SIZES, strict=True):
        image = np.concatenate([a, c[:, None]], axis=1).astype(np.float32)
        pictures, targets = np.repeat(image[None, None], size, axis=0), np.zeros(size, np.int64)
        examples = ArrayExamples(pictures, targets, np.arange(size), to_image=np.asarray)
        held.append((examples, TensorCache(examples, torch.float64, torch.device("cpu"))))
    model, gradients = Quadratic(), plain_gradients(lambda outputs, targets: outputs.mean(), "float64")
    weights = {"w": torch.zeros(2, dtype=torch.float64)}
    state, path = rule.server_init(weights), []
    for number in range(1, rounds + 1):
        deltas = []
        for site, (examples, cache) in enumerate(held):
            load_state(model, weights)
            data = LocalTraining(examples, training, Seeds(3), site=f"s{site}", round=number, rounds=rounds, cache=cache)
            update, _ = rule.local_update(model, data, gradients, rule.init(model))
            deltas.append(rule.weight(len(examples)) * update.delta["w"])
        mean = {"w": sum(deltas) / sum(map(rule.weight, SIZES))}
        weights, state = rule.server_update(weights, mean, state)
        path.append(weights["w"].numpy().copy())
    return np.array(path)


def test_the_closed_forms_are_stationary():
    """By the gradient of each objective, written with automatic differentiation from the losses alone."""
    a, c = (torch.from_numpy(x) for x in sites())

    def losses(w):
        return [0.5 * (w - ci) @ ai @ (w - ci) for ai, ci in zip(a, c, strict=True)]

    def adapted(w):
        return [w - ALPHA * torch.autograd.grad(f, w, create_graph=True)[0] for f in losses(w)]

    for name, point in closed_forms().items():
        w = torch.from_numpy(point).requires_grad_()
        if name == "fedavg":
            (slope,) = torch.autograd.grad(sum(losses(w)), w)
        elif name == "exact":
            (slope,) = torch.autograd.grad(sum(losses(wi)[i] for i, wi in enumerate(adapted(w))), w)
        else:
            slope = sum(torch.autograd.grad(losses(wi)[i], wi)[0] for i, wi in enumerate(adapted(w)))
        assert float(slope.detach().norm()) < 1e-12, name


def test_the_three_points_are_different():
    points = list(closed_forms().values())
    assert min(np.linalg.norm(p - q) for i, p in enumerate(points) for q in points[:i]) > 0.1


@pytest.mark.parametrize("order", ["first", "hessian-free", "exact"])
def test_each_order_converges_to_its_own_point(order):
    path = federate(PerFedAvg(PerFedAvgConfig(inner_lr=ALPHA, order=order)))
    goal = closed_forms()["first" if order == "first" else "exact"]
    assert np.linalg.norm(path[-1] - goal) < 1e-8  # asked for is 1e-4
    others = [p for p in closed_forms().values() if p is not goal and not np.array_equal(p, goal)]
    assert min(np.linalg.norm(path[-1] - p) for p in others) > 0.1


def test_fedavg_and_an_inner_rate_of_zero_converge_to_fedavgs_point():
    fedavg = federate(FedAvg(FedAvgConfig()))
    zero = federate(PerFedAvg(PerFedAvgConfig(inner_lr=0.0, order="exact")))
    assert np.linalg.norm(fedavg[-1] - closed_forms()["fedavg"]) < 1e-8
    np.testing.assert_array_equal(zero, fedavg)


def test_the_outer_rate_is_its_own():
    """A path is the same whether the outer rate comes from the training or from ``outer_lr``."""
    rule = PerFedAvg(PerFedAvgConfig(inner_lr=ALPHA, outer_lr=BETA))
    np.testing.assert_array_equal(federate(rule, 20, lr=1e-3), federate(PerFedAvg(PerFedAvgConfig(inner_lr=ALPHA)), 20))


class AlternatingSteps(FedAvg):
    """What PPPML-HMI's code does under the name of Per-FedAvg (its weights are saved again before each batch, so nothing is restored).

    Even batches: a step of an Adam that is kept in the round, at rate alpha. Odd batches: a step of a new Adam at rate beta, whose first
    step is ``-beta sign(g)``. Then FedAvg.
    """

    def __init__(self, alpha, beta):
        super().__init__(FedAvgConfig())
        self.alpha, self.beta = alpha, beta

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)
        kept = torch.optim.Adam(model.parameters(), lr=self.alpha)
        for number, batch in enumerate(data.batches()):
            gradients(model, batch)
            optimizer = torch.optim.Adam(model.parameters(), lr=self.beta) if number % 2 else kept
            optimizer.step()
        return Update(difference(model, start)), state


@pytest.mark.parametrize(("alpha", "beta"), [(0.04, 0.004), (0.004, 0.04)])
def test_alternating_steps_do_not(alpha, beta):
    """At both ratios of rates in PPPML-HMI's settings (10 and 1/10): never within 1e-4 of the points in question, not even in passing.

    The mean of sign descent rests where the signs balance, near (1, 0) here: a median of the sites' optima, whatever their curvatures.
    """
    path = federate(AlternatingSteps(alpha, beta), steps=4)
    assert np.linalg.norm(path[-1] - path[-10]) < max(alpha, beta), "it has settled, as far as it ever does"
    for name in ("first", "exact"):
        nearest = np.linalg.norm(path - closed_forms()[name], axis=1).min()
        print(f"rates {alpha:g} and {beta:g}: {nearest:.3f} from the point of order {name}; at the end {path[-1]}")
        assert nearest > 0.1, name

"""The plain gradient rule and its Hessian-vector products, against torch's own double differentiation and closed forms."""

from __future__ import annotations

import copy

import pytest
import torch

from pppml_core.errors import PppmlError
from pppml_core.learning.gradients import PlainGradients, plain_gradients
from pppml_core.testing.local_data import FixedData, small_network

LOSS = torch.nn.functional.cross_entropy


def smooth():
    """A network whose second derivatives are not zero anywhere: two tanh layers and a head, float64."""
    generator = torch.Generator().manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    network.double()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    images = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    return network, (images, torch.tensor([0, 1, 2, 0, 1, 2, 0]))


def direction(network, names=None, seed=5):
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in network.named_parameters()}
    return {n: v for n, v in drawn.items() if names is None or n in names}


def loss_of(network, batch, names):
    """The loss as a function of the named parameters alone, for torch.autograd.functional."""

    def loss(*values):
        return LOSS(torch.func.functional_call(network, dict(zip(names, values, strict=True)), (batch[0],)), batch[1])

    return loss, tuple(dict(network.named_parameters())[n].detach().clone() for n in names)


def test_the_gradient_is_that_of_the_mean_loss():
    network, batch = smooth()
    value = plain_gradients(LOSS)(network, batch)
    by_hand = copy.deepcopy(network)
    by_hand.zero_grad()
    expected = LOSS(by_hand(batch[0]), batch[1])
    expected.backward()
    assert value == expected.item()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(network.parameters(), by_hand.parameters(), strict=True))


def test_gradients_do_not_add_up():
    network, batch = smooth()
    rule = plain_gradients(LOSS)
    rule(network, batch)
    first = [p.grad.clone() for p in network.parameters()]
    rule(network, batch)
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), first, strict=True))


def test_products_are_those_of_torchs_hvp():
    network, batch = smooth()
    vector = direction(network)
    found = PlainGradients(LOSS).hessian_vector(network, batch, vector)
    loss, at = loss_of(network, batch, list(vector))
    _, expected = torch.autograd.functional.hvp(loss, at, tuple(vector.values()))
    assert list(found) == list(vector)
    for name, h in zip(vector, expected, strict=True):
        torch.testing.assert_close(found[name], h, rtol=1e-10, atol=1e-12)
        assert torch.count_nonzero(found[name])


def test_products_are_columns_of_torchs_hessian():
    network, batch = smooth()
    names = ["2.weight", "4.bias"]
    loss, at = loss_of(network, batch, names)
    blocks = torch.autograd.functional.hessian(loss, at)
    sizes = [t.numel() for t in at]
    rows = [[block.reshape(r, c) for block, c in zip(row, sizes, strict=True)] for row, r in zip(blocks, sizes, strict=True)]
    hessian = torch.cat([torch.cat(row, 1) for row in rows])
    for place in range(sum(sizes)):
        unit = torch.zeros(sum(sizes), dtype=torch.float64)
        unit[place] = 1
        vector = {n: u.reshape(t.shape) for n, u, t in zip(names, unit.split(sizes), at, strict=True)}
        found = PlainGradients(LOSS).hessian_vector(network, batch, vector)
        torch.testing.assert_close(torch.cat([found[n].flatten() for n in names]), hessian[:, place], rtol=1e-10, atol=1e-12)


def test_parameters_that_are_not_named_count_as_zero():
    network, batch = smooth()
    rule, names = PlainGradients(LOSS), ("0.weight", "4.weight")
    part = direction(network, names)
    whole = {n: part.get(n, torch.zeros_like(p)) for n, p in network.named_parameters()}
    found, expected = rule.hessian_vector(network, batch, part), rule.hessian_vector(network, batch, whole)
    assert set(found) == set(names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)


def test_the_hessian_is_symmetric_and_linear():
    network, batch = smooth()
    rule, u, v = PlainGradients(LOSS), direction(network, seed=1), direction(network, seed=2)
    hu, hv = rule.hessian_vector(network, batch, u), rule.hessian_vector(network, batch, v)
    both = rule.hessian_vector(network, batch, {n: 2 * u[n] - v[n] for n in u})
    assert float(sum((v[n] * hu[n]).sum() for n in u)) == pytest.approx(float(sum((u[n] * hv[n]).sum() for n in u)), rel=1e-10)
    for name in u:
        torch.testing.assert_close(both[name], 2 * hu[name] - hv[name], rtol=1e-9, atol=1e-11)


class Quadratic(torch.nn.Module):
    """``x -> x . (w * w * w / 6)`` plus a bias that takes part linearly, and a parameter that takes no part."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        self.bias = torch.nn.Parameter(torch.tensor(0.5))
        self.idle = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x @ (self.w**3 / 6) + self.bias


def test_a_closed_form():
    """The loss is the mean of the outputs: its Hessian is ``diag(mean(x) * w)`` in w, and zero elsewhere."""
    network, x = Quadratic(), torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, -2.0]])
    rule = PlainGradients(lambda outputs, targets: outputs.mean())
    vector = {"w": torch.tensor([1.0, 10.0, 100.0]), "bias": torch.tensor(7.0), "idle": torch.ones(2)}
    found = rule.hessian_vector(network, (x, torch.zeros(2)), vector)
    assert found["w"].tolist() == pytest.approx([2.0, -20.0, 300.0])  # mean x = (2, 1, 1), times w, times the vector
    assert found["bias"].item() == 0.0
    assert found["idle"].tolist() == [0.0, 0.0]


def test_a_loss_that_is_linear_has_no_curvature():
    network = torch.nn.Linear(3, 1)
    rule = PlainGradients(lambda outputs, targets: outputs.sum())
    found = rule.hessian_vector(network, (torch.ones(2, 3), torch.zeros(2)), direction(network))
    assert set(found) == {"weight", "bias"}
    for name, p in network.named_parameters():
        assert found[name].shape == p.shape
        assert not torch.count_nonzero(found[name])


def test_a_product_leaves_gradients_and_weights_alone():
    network, batch = smooth()
    rule = PlainGradients(LOSS)
    rule(network, batch)
    grads, weights = [p.grad.clone() for p in network.parameters()], [p.detach().clone() for p in network.parameters()]
    found = rule.hessian_vector(network, batch, direction(network))
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), grads, strict=True))
    assert all(torch.equal(p.detach(), w) for p, w in zip(network.parameters(), weights, strict=True))
    assert not any(h.requires_grad for h in found.values()), "nobody can differentiate it further by accident"


@pytest.mark.parametrize("training", [True, False])
def test_buffers_change_as_in_any_forward_pass(training):
    networks = [small_network().train(training) for _ in range(2)]
    batch = FixedData().everything()
    PlainGradients(LOSS).hessian_vector(networks[0], batch, direction(networks[0], ("head.weight",)))
    networks[1](batch[0])
    assert torch.equal(networks[0].norm.running_mean, networks[1].norm.running_mean)
    assert int(networks[0].norm.num_batches_tracked) == int(training)


def test_products_go_through_batch_normalization():
    """In training mode the statistics are functions of the weights too; central differences of the gradient say so."""
    network, batch = small_network(dtype=torch.float64), FixedData(dtype=torch.float64).everything()
    names, rule = ("conv.weight", "norm.weight"), PlainGradients(LOSS)
    vector, parameters = direction(network, names), dict(network.named_parameters())
    found = rule.hessian_vector(network, batch, vector)

    def gradient(by):
        with torch.no_grad():
            for name in names:
                parameters[name].add_(by * vector[name])
        rule(network, batch)
        grads = {n: parameters[n].grad.clone() for n in names}
        with torch.no_grad():
            for name in names:
                parameters[name].sub_(by * vector[name])
        return grads

    above, below = gradient(1e-6), gradient(-1e-6)
    for name in names:
        torch.testing.assert_close(found[name], (above[name] - below[name]) / 2e-6, rtol=1e-5, atol=1e-7)


def test_there_are_no_products_in_bf16():
    network, batch = small_network(), FixedData().everything()
    with pytest.raises(PppmlError, match="bf16"):
        PlainGradients(LOSS, "bf16").hessian_vector(network, batch, direction(network))


def test_bf16_gradients_stay_float32():
    exact, rough = small_network(), small_network()
    batch = FixedData().everything()
    PlainGradients(LOSS)(exact, batch)
    PlainGradients(LOSS, "bf16")(rough, batch)
    assert {p.grad.dtype for p in rough.parameters()} == {torch.float32}
    error = float((rough.head.weight.grad - exact.head.weight.grad).norm() / exact.head.weight.grad.norm())
    assert 0 < error < 0.1


def test_attention_has_products_too():
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.inner(x, x, x, need_weights=False)[0].flatten(1)

    torch.manual_seed(0)
    network, rule = Attention().double(), PlainGradients(torch.nn.functional.cross_entropy)
    batch = torch.randn(3, 5, 4, dtype=torch.float64), torch.tensor([0, 7, 19])
    vector = {n: torch.randn_like(p) for n, p in network.named_parameters()}
    found = rule.hessian_vector(network, batch, vector)

    def gradient(by):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.add_(by * vector[name])
        rule(network, batch)
        grads = {n: p.grad.clone() for n, p in network.named_parameters()}
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.sub_(by * vector[name])
        return grads

    above, below = gradient(1e-5), gradient(-1e-5)
    for name in vector:
        torch.testing.assert_close(found[name], (above[name] - below[name]) / 2e-5, rtol=1e-4, atol=1e-8)

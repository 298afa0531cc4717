"""The meta-gradient of one step against numbers worked out by hand, automatic differentiation of the objective, and its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pppml_core.errors import PppmlError
from pppml_core.learning.gradients import plain_gradients
from pppml_perfedavg.meta_gradient import MetaGradient, difference_step

ORDERS = ("first", "hessian-free", "exact")


def squared(outputs, targets):
    return 0.5 * (outputs - targets).square().mean()


def grads(model):
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def mlp(seed=0, *, width=5, dtype=torch.float64, extra=()):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), *extra, nn.Linear(width, 2)).to(dtype)


def three_batches(seed=0, dtype=torch.float64, size=6):
    generator = torch.Generator().manual_seed(seed + 100)
    return tuple((torch.randn(size, 3, generator=generator).to(dtype), torch.randn(size, 2, generator=generator).to(dtype)) for _ in "123")


def step(model, batches, order, alpha=0.1, rule=None, **options):
    return MetaGradient(rule or plain_gradients(squared), alpha, order, **options)(model, batches)


def relative(found, expected):
    """Euclidean distance over all parameters, relative to the expected length."""
    off = math.sqrt(sum(float((found[n] - e).square().sum()) for n, e in expected.items()))
    return off / math.sqrt(sum(float(e.square().sum()) for e in expected.values()))


# -- by hand ------------------------------------------------------------------------------------------------------------------------------


class Product(nn.Module):
    """``a b x``, two parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.a * self.b * x


@pytest.mark.parametrize(
    ("order", "options", "expected"),
    [
        ("first", {}, (3.0, 0.0)),
        ("exact", {}, (-21.0, -15.0)),
        ("hessian-free", {"hessian_step": 0.25}, (-21.0, -15.0)),
        ("hessian-free", {"hessian_step": 0.5}, (-21.0, -15.0)),
    ],
)
def test_one_step_by_hand(order, options, expected):
    """``f(a, b) = (a b x - y)^2 / 2`` at ``w = (1, 2)``, ``alpha = 1/2``; every number is a sum of few powers of two, so all is exact.

    With r = a b x - y the gradient is r x (b, a), the Hessian x^2 (b^2, ab; ab, a^2) + r x (0, 1; 1, 0).

    - D:   x = 1, y = 1:  r = 1,  g = (2, 1);  the adapted point is (1, 2) - (2, 1)/2 = (0, 3/2).
    - D':  x = 1, y = -2: r = 2,  v = 2 (3/2, 0) = (3, 0);  its loss is 2.
    - D'': x = 2, y = 3, at (1, 2): r = 1,  H = 4 (4, 2; 2, 1) + 2 (0, 1; 1, 0) = (16, 10; 10, 4),  H v = (48, 30).
    - Exact: (3, 0) - (48, 30)/2 = (-21, -15). First order: (3, 0).
    - By differences at (1 +- 3 delta, 2): r = 1 +- 12 delta, g = 2 (1 +- 12 delta) (2, 1 +- 3 delta); the difference over 2 delta is
      (4 * 24, 2 * 30) delta / (2 delta) = (48, 30), whatever delta.
    """
    model = Product()
    batches = tuple((torch.tensor([x]), torch.tensor([y])) for x, y in ((1.0, 1.0), (1.0, -2.0), (2.0, 3.0)))
    assert step(model, batches, order, alpha=0.5, **options) == 2.0
    assert (model.a.grad.item(), model.b.grad.item()) == expected
    assert (model.a.item(), model.b.item()) == (1.0, 2.0)
    torch.optim.SGD(model.parameters(), lr=0.125).step()
    assert (model.a.item(), model.b.item()) == (1 - expected[0] / 8, 2 - expected[1] / 8)


# -- automatic differentiation ------------------------------------------------------------------------------------------------------------


def at(model, values, batch):
    return squared(torch.func.functional_call(model, values, batch[0]), batch[1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), alpha=st.floats(1e-3, 2.0))
def test_exact_is_the_gradient_of_the_loss_after_a_step(seed, alpha):
    """``grad_w f'(w - alpha grad f(w)) = (I - alpha H(w)) g'(w - alpha g(w))`` holds for any two losses f, f': here those on D and D'.

    So with D'' = D the meta-gradient is the derivative of one differentiable function, by automatic differentiation through the step.
    """
    model, (d, d1, _) = mlp(seed), three_batches(seed)
    values = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    inner = torch.autograd.grad(at(model, values, d), list(values.values()), create_graph=True)
    moved = {n: p - alpha * g for (n, p), g in zip(values.items(), inner, strict=True)}
    outer = at(model, moved, d1)
    expected = dict(zip(values, torch.autograd.grad(outer, list(values.values())), strict=True))

    assert step(model, (d, d1, d), "exact", alpha) == pytest.approx(float(outer.detach()), rel=1e-12)
    assert relative(grads(model), expected) < 1e-10
    step(model, (d, d1, d), "hessian-free", alpha)
    assert relative(grads(model), expected) < 1e-6


@pytest.mark.parametrize("order", ORDERS)
def test_three_batches_against_the_hessian_matrix(order):
    """The definition, with the whole Hessian on D'' from ``torch.autograd.functional``."""
    model, (d, d1, d2), alpha = mlp(), three_batches(), 0.3
    names, shapes = [n for n, _ in model.named_parameters()], [p.shape for p in model.parameters()]

    def unflat(vector):
        parts = vector.split([math.prod(s) for s in shapes])
        return {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}

    def loss(vector, batch):
        return at(model, unflat(vector), batch)

    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    inner = torch.autograd.functional.jacobian(lambda x: loss(x, d), w)
    v = torch.autograd.functional.jacobian(lambda x: loss(x, d1), w - alpha * inner)
    hessian = torch.autograd.functional.hessian(lambda x: loss(x, d2), w)
    expected = unflat(v if order == "first" else v - alpha * hessian @ v)

    step(model, (d, d1, d2), order, alpha)
    assert relative(grads(model), expected) < (1e-8 if order == "hessian-free" else 1e-12)
    assert (relative(grads(model), unflat(v)) > 0.01) == (order != "first"), "the Hessian's part is there"


# -- hessian-free -------------------------------------------------------------------------------------------------------------------------


def by_both(model, batches, **options):
    """H v from the meta-gradients of ``hessian-free`` and ``exact`` (v is the same to the bit), times alpha."""
    out = []
    for order in ("first", "hessian-free", "exact"):
        torch.manual_seed(3)
        step(model, batches, order, 1.0, **(options if order == "hessian-free" else {}))
        out.append(grads(model))
    first, free, exact = out
    return {n: first[n] - free[n] for n in first}, {n: first[n] - exact[n] for n in first}


def convolutional(dtype):
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 2)).to(dtype)


@pytest.mark.parametrize(("dtype", "stated"), [(torch.float32, 1e-3), (torch.float64, 1e-8)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
def test_auto_step_keeps_its_stated_error(dtype, stated, scale, kind):
    """Also where the gradient, and so v, is thirty times as long: the step is measured along it."""
    if kind == "mlp":
        model, batches = mlp(2, width=40, dtype=dtype), three_batches(2, dtype)
    else:
        generator = torch.Generator().manual_seed(0)
        batches = tuple(
            (torch.randn(8, 3, 8, 8, generator=generator).to(dtype), torch.randn(8, 2, generator=generator).to(dtype)) for _ in "123"
        )
        model = convolutional(dtype)
    free, exact = by_both(model, [(x, scale * y) for x, y in batches])
    assert relative(free, exact) < stated


def test_the_error_falls_with_the_square_of_the_step():
    """Central differences: a quarter of the error at half the step, until rounding."""
    model, batches = mlp(4), three_batches(4)
    errors = [relative(*by_both(model, batches, hessian_step=delta)) for delta in (0.2, 0.1, 0.05)]
    assert errors[0] > 1e-5
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.15)


def test_the_auto_step_by_its_formula():
    """Rows of norm 2 and a direction of length 10: delta = eps^(1/3) * 2 / 10. Rows below 1 count as 1."""
    layer = nn.Linear(4, 5, bias=False)
    v = {"weight": torch.full((5, 4), 10 / math.sqrt(20))}
    nn.init.constant_(layer.weight, 1.0)
    assert difference_step(layer, v) == pytest.approx(2.0 ** (-23 / 3) * 2 / 10)
    nn.init.constant_(layer.weight, 0.01)
    assert difference_step(layer, v) == pytest.approx(2.0 ** (-23 / 3) / 10)
    assert difference_step(layer.double(), v) == pytest.approx(2.0 ** (-52 / 3) / 10)
    assert difference_step(layer, {"weight": torch.zeros(5, 4)}) == 1.0


def test_a_vanishing_gradient_gives_a_vanishing_meta_gradient():
    model, batches = mlp(), three_batches()
    fitted = [(x, model(x).detach()) for x, _ in batches]
    step(model, fitted, "hessian-free")
    assert all(torch.count_nonzero(g) == 0 for g in grads(model).values())


# -- random numbers -----------------------------------------------------------------------------------------------------------------------


def test_dropout_is_the_same_on_both_sides_and_in_the_exact_product():
    """The product is that of one function: the network with the masks drawn for D''. And one mask is drawn for each batch."""
    model, batches = mlp(1, width=30, extra=(nn.Dropout(0.5),)), three_batches(1)
    free, exact = by_both(model, batches)
    assert relative(free, exact) < 1e-8

    ends = []
    for order in ("hessian-free", "exact"):
        torch.manual_seed(3)
        step(model, batches, order)
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)
    torch.manual_seed(3)
    for batch in batches:
        model(batch[0])
    assert torch.equal(torch.get_rng_state(), ends[0])


def test_the_passes_on_different_batches_draw_different_masks():
    model, (d, _, _) = mlp(1, width=30, extra=(nn.Dropout(0.5),)), three_batches(1)
    seen = []
    model[2].register_forward_hook(lambda module, inputs, output: seen.append(output == 0))
    step(model, (d, d, d), "hessian-free")
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])


# -- what is moved is put back ------------------------------------------------------------------------------------------------------------


class Failing(Exception):
    pass


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("call", range(5))
def test_weights_and_buffers_are_put_back_bit_for_bit(order, call):
    """Whether a gradient call raises (the ``call``-th, before or after its pass) or none does."""
    model, batches = mlp(3, extra=(nn.BatchNorm1d(5),), dtype=torch.float32), three_batches(3, torch.float32)
    before, plain, count = weights(model), plain_gradients(squared), 0
    plain(model, batches[0])
    after_first = {n: b.clone() for n, b in model.named_buffers()}
    for when in ("before", "after"):
        model[2].reset_running_stats()
        initial = {n: b.clone() for n, b in model.named_buffers()}
        count = 0

        def run(pass_, model, batch, *rest, when=when):
            nonlocal count
            count += 1
            if count == call + 1 and when == "before":
                raise Failing
            value = pass_(model, batch, *rest)
            if count == call + 1:
                raise Failing
            return value

        def rule(model, batch, run=run):
            return run(plain, model, batch)

        rule.hessian_vector = lambda model, batch, vector, run=run: run(plain.hessian_vector, model, batch, vector)
        calls = {"first": 2, "hessian-free": 4, "exact": 3}[order]
        if call < calls:
            with pytest.raises(Failing):
                step(model, batches, order, rule=rule)
        else:
            step(model, batches, order, rule=rule)
            assert count == calls
        assert same(weights(model), before)
        buffers = dict(model.named_buffers())
        assert same(buffers, initial if call == 0 and when == "before" else after_first)


def test_a_step_leaves_gradients_of_its_own():
    """The gradients it sets are no other call's to write into: a rule that adds to what it finds gives the same again."""
    model, batches = mlp(), three_batches()
    plain = plain_gradients(squared)
    step(model, batches, "hessian-free")
    expected = grads(model)

    def accumulating(model, batch):
        held = [p.grad for p in model.parameters()]
        value = plain(model, batch)
        for h, p in zip(held, model.parameters(), strict=True):
            if h is not None:
                p.grad += h
        return value

    model.zero_grad()
    step(model, batches, "hessian-free", rule=accumulating)
    assert same(grads(model), expected)


# -- frozen and unused parameters ---------------------------------------------------------------------------------------------------------


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = mlp(5), nn.Linear(2, 2).double()
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)

    def forward(self, x):
        return self.used(x * self.frozen)


@pytest.mark.parametrize("order", ORDERS)
def test_frozen_and_unused_parameters_stay_without_gradient(order):
    whole, batches = Unused(), three_batches(5)
    before = weights(whole)
    step(whole, batches, order)
    found = {n.removeprefix("used."): g for n, g in grads(whole).items() if n.startswith("used.")}
    assert all(whole.get_parameter(n).grad is None for n in ("unused.weight", "unused.bias", "frozen"))
    step(whole.used, batches, order)
    assert same(found, grads(whole.used))
    assert same(weights(whole), before)


# -- the gradient rule --------------------------------------------------------------------------------------------------------------------


class Private:
    """A privacy mechanism's rule in miniature: it notes each call, clips the gradient to length 1, and adds noise of its own stream."""

    def __init__(self, noise):
        self.plain, self.noise, self.generator = plain_gradients(squared), noise, torch.Generator().manual_seed(9)
        self.calls = []

    def __call__(self, model, batch):
        value = self.plain(model, batch)
        length = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        for p in model.parameters():
            p.grad /= max(1.0, length)
            p.grad += self.noise * torch.randn(p.shape, generator=self.generator, dtype=p.dtype)
        self.calls.append((batch[0], weights(model), grads(model)))
        return value


@pytest.mark.parametrize(("order", "count"), [("first", 2), ("hessian-free", 4)])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_every_gradient_is_the_rules(order, count, noise):
    """Each access is on the batch and at the point that the algorithm names, and the result is made of what the rule gave, nothing else."""
    model, (d, d1, d2), alpha, delta = mlp(6), three_batches(6), 0.4, 0.1
    rule, w = Private(noise), weights(model)
    step(model, (d, d1, d2), order, alpha, rule=rule, hessian_step=delta)
    assert len(rule.calls) == count
    assert [batch is b[0] for (batch, _, _), b in zip(rule.calls, (d, d1, d2, d2), strict=False)] == [True] * count
    (_, w0, g0), (_, w1, v), *rest = rule.calls
    assert same(w0, w)
    assert relative(w1, {n: w[n] - alpha * g0[n] for n in w}) < 1e-15
    if order == "first":
        assert same(grads(model), v)
        return
    (_, above, ga), (_, below, gb) = rest
    assert relative(above, {n: w[n] + delta * v[n] for n in w}) < 1e-15
    assert relative(below, {n: w[n] - delta * v[n] for n in w}) < 1e-15
    assert relative(grads(model), {n: v[n] - alpha * (ga[n] - gb[n]) / (2 * delta) for n in w}) < 1e-12


def test_exact_without_products_is_refused_with_reason_and_remedy():
    with pytest.raises(PppmlError, match="Hessian-vector") as refused:
        MetaGradient(Private(0.0), 0.1, "exact")
    assert refused.value.place == "personalization.order"
    assert "first" in str(refused.value.hint)
    MetaGradient(Private(0.0), 0.1, "hessian-free")

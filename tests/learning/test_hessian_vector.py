"""Hessian-vector products against finite differences of gradients in float64, and against torch's own second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from pppml_core.errors import PppmlError
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.group_norm import group_norm


class Tied(nn.Module):
    """One kernel in two convolutions, and in a penalty that is no convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        inner = torch.tanh(self.conv(x))
        return self.conv(inner) + self.conv.weight.square().sum() * inner


class Shifted(nn.Module):
    def forward(self, x):
        return (x + 3.0).transpose(0, 1).contiguous().transpose(0, 1)


class Bounded(nn.Module):
    def forward(self, weight):
        return torch.tanh(weight)


class Made(nn.Module):
    """Kernels that are functions of parameters, unbatched images, and a string as padding: torch's own path and ours, mixed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(4, 2, 3, bias=False)
        for layer in (self.first, self.second):
            register_parametrization(layer, "weight", Bounded())

    def forward(self, x):
        inner = torch.tanh(self.first(x))
        return torch.stack([self.second(image) for image in inner]) * self.second(inner)


NETWORKS = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=2, dilation=2, groups=2), nn.Tanh(), nn.Conv1d(4, 3, 3)), (2, 9)),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, bias=False), nn.SiLU(), nn.Conv2d(4, 3, (1, 2), padding=(0, 1))),
        (2, 7, 8),
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv3d(3, 2, 2, stride=2)), (1, 4, 4, 4)),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1, groups=2), nn.SiLU(), nn.Conv2d(4, 2, 1)
        ),
        (2, 6, 6),
    ),
    "batch-norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3)), (2, 6, 6)),
    "group-norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 2)),
        (2, 6, 6),
    ),
    "group-norms": (
        lambda: nn.Sequential(
            Shifted(),
            nn.GroupNorm(2, 2),
            nn.Conv1d(2, 6, 3),
            nn.GroupNorm(1, 6),
            nn.Tanh(),
            nn.GroupNorm(3, 6, affine=False),
            nn.GroupNorm(6, 6, eps=0.1),
            nn.SiLU(),
            nn.Conv1d(6, 2, 1),
        ),
        (2, 9),
    ),
    "tied": (Tied, (2, 5, 5)),
    "made": (Made, (2, 6, 6)),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)), (2, 4)),
}


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Smooth, not quadratic, and not the cross-entropy."""
    return torch.log(torch.cosh(outputs.flatten(1).sum(1, keepdim=True) - targets)).mean() + 0.1 * outputs.pow(3).mean()


def prepared(name: str):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    batch = torch.randn(4, *shape, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    return model, batch, {n: torch.randn_like(p) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_against_differences_of_gradients(name):
    model, batch, vector = prepared(name)
    gradients = plain_gradients(loss)
    product = gradients.hessian_vector(model, batch, vector)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}

    def gradient(step: float) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(weights[n] + step * vector[n])
        gradients(model, batch)
        return {n: p.grad for n, p in model.named_parameters()}

    h = 1e-5
    above, below = gradient(h), gradient(-h)
    size = max(float(t.abs().max()) for t in product.values())
    assert size > 1e-3
    for n in weights:
        torch.testing.assert_close(product[n], (above[n] - below[n]) / (2 * h), rtol=0, atol=1e-7 * size)


@pytest.mark.parametrize("name", NETWORKS)
def test_against_torch_func(name):
    model, batch, vector = prepared(name)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    if name == "batch-norm":
        model.eval()  # torch.func does not update statistics in place

    def value(at):
        return loss(torch.func.functional_call(model, at, batch[0]), batch[1])

    _, expected = torch.func.jvp(torch.func.grad(value), (parameters,), (vector,))
    product = plain_gradients(loss).hessian_vector(model, batch, vector)
    for n in parameters:
        torch.testing.assert_close(product[n], expected[n], rtol=1e-9, atol=1e-9)


LAYOUTS = {
    "plain": lambda t: t,
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "one image again": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_g", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
def test_group_norm_of_tensors_in_any_layout(of_x, of_g, of_a):
    """Torch's kernels take the memory of the gradient as it lies: values of another layout are silently wrong."""

    def derivatives(norm):
        torch.manual_seed(0)
        x, g, a = (LAYOUTS[name](torch.randn(2, 4, 3, 5, dtype=torch.float64)) for name in (of_x, of_g, of_a))
        weight, bias, b, c = torch.randn(4, 4, dtype=torch.float64)
        at = [t.detach().requires_grad_() for t in (x, weight, bias)]
        y, g = norm(at[0], 2, *at[1:]), g.detach().requires_grad_()
        first = torch.autograd.grad(y, at, g, create_graph=True)
        return [y, *first, *torch.autograd.grad(first, (*at[:2], g), (a, b, c))]

    for found, expected in zip(derivatives(group_norm), derivatives(nn.functional.group_norm), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_group_norm_of_mixed_types_is_torch_s():
    """Under autocast torch may convert the input first, which a call past it would leave out."""
    images, ones = torch.randn(2, 4, 3), torch.ones(4)
    assert group_norm(images, 2, ones, ones) is not None
    assert group_norm(images.bfloat16(), 2, ones, ones) is None


def test_named_parameters_only_and_nothing_else_changes():
    model, batch, vector = prepared("conv2d")
    gradients = plain_gradients(loss)
    gradients(model, batch)
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    whole = gradients.hessian_vector(model, batch, {n: v if n == "0.weight" else torch.zeros_like(v) for n, v in vector.items()})
    part = gradients.hessian_vector(model, batch, {"0.weight": vector["0.weight"]})
    assert set(part) == {"0.weight"}
    torch.testing.assert_close(part["0.weight"], whole["0.weight"])
    for n, p in model.named_parameters():
        assert torch.equal(p.grad, before[n]), n
        assert torch.equal(p.detach(), weights[n]), n


def test_frozen_parameters_and_losses_without_curvature():
    model, batch, vector = prepared("conv2d")
    model.get_parameter("0.weight").requires_grad_(False)
    named = {n: v for n, v in vector.items() if n != "0.weight"}
    product = plain_gradients(loss).hessian_vector(model, batch, named)
    assert set(product) == set(named)
    assert float(product["2.weight"].abs().max()) > 0

    linear = nn.Conv2d(2, 3, 3).double()
    flat = plain_gradients(lambda outputs, targets: outputs.mean()).hessian_vector(
        linear, batch, {n: torch.randn_like(p) for n, p in linear.named_parameters()}
    )
    assert all(torch.count_nonzero(t) == 0 for t in flat.values())


def test_dropout_is_drawn_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)).double()
    batch = torch.randn(4, 2, 6, 6, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    vector = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    gradients = plain_gradients(loss)
    torch.manual_seed(1)
    gradients(model, batch)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    gradients.hessian_vector(model, batch, vector)
    assert torch.equal(torch.get_rng_state(), after)


def test_gradients_are_as_ever_after_a_product():
    model, batch, vector = prepared("conv2d")
    gradients = plain_gradients(loss)
    value = gradients(model, batch)
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    gradients.hessian_vector(model, batch, vector)
    assert gradients(model, batch) == value
    for n, p in model.named_parameters():
        assert torch.equal(p.grad, before[n]), n


def test_bf16_is_refused():
    model, batch, vector = prepared("linear")
    with pytest.raises(PppmlError, match="bf16"):
        plain_gradients(loss, "bf16").hessian_vector(model, batch, vector)

"""The clipped sum by every method: against its definition, its bound under attack, and what it leaves untouched."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet, DenseNet, UNet, ViT
from torch import nn
from torch.nn import functional as F

from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import DrawnBatch
from pppml_core.interfaces.task import Kind
from pppml_core.learning.losses import default_loss
from pppml_dp import book_keeping, per_example
from pppml_dp.clipping import Clipping, layers_of
from pppml_dp.per_example import clipped_sum, method_for

METHODS = ["book-keeping", "functional", "loop"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)).to(dtype)


def batch_of(count, dtype=torch.float32, shares=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return DrawnBatch(images, torch.arange(count) % 3, np.ones(count) if shares is None else np.asarray(shares, np.float64))


def picked(batch, which):
    return DrawnBatch(batch[0][which], batch[1][which], batch.shares[which])


def found(model, batch, clipping, loss=F.cross_entropy, **options):
    """The clipped sum, and no trace of another one."""
    model.zero_grad()
    clipped_sum(model, loss, batch, clipping, **options)
    return {n: p.grad.double() for n, p in model.named_parameters()}


def defined(model, batch, clipping, loss=F.cross_entropy):
    """The clipped sum as the protocol defines it, kind by kind, without any of the code under test."""
    names = [n for n, _ in model.named_parameters()]
    owner = [n.rpartition(".")[0] for n in names]
    out = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in model.named_parameters()}
    for i, share in enumerate(batch.shares):
        model.zero_grad()
        loss(model(batch[0][i : i + 1]), batch[1][i : i + 1]).backward()
        gradient = {n: (torch.zeros_like(p) if p.grad is None else p.grad).double() for n, p in model.named_parameters()}
        square = {n: float(g.square().sum()) for n, g in gradient.items()}
        whole = sum(square.values()) ** 0.5
        for n, own in zip(names, owner, strict=True):
            if clipping.kind == "flat":
                factor = min(1, clipping.norm / whole)
            elif clipping.kind == "automatic":
                factor = clipping.norm / (whole + 0.01)
            else:
                factor = min(
                    1, clipping.norm / len(set(owner)) ** 0.5 / sum(square[m] for m, o in zip(names, owner, strict=True) if o == own) ** 0.5
                )
            out[n] += share * factor * gradient[n]
    model.zero_grad()
    return out


def norm(gradients):
    return sum(float(g.square().sum()) for g in gradients.values()) ** 0.5


def deviation(a, b):
    """Of each tensor, relative to its norm; of a tensor below a twentieth of the whole, relative to that."""
    least = 0.05 * norm(b)
    return max(float((a[n] - g).norm()) / max(float(g.norm()), least) for n, g in b.items())


# -- the sum ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["flat", "per-layer", "automatic"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_kind_is_as_defined(method, kind, dtype):
    model, batch = network(dtype), batch_of(7, dtype, np.linspace(0.1, 1, 7))
    for clip in (0.1, 1.0, 100.0):
        clipping = Clipping(kind, clip)
        assert deviation(found(model, batch, clipping, method=method), defined(model, batch, clipping)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_split_batches_have_the_same_sum(method, size):
    model, batch, clipping = network(torch.float64), batch_of(7, torch.float64, np.linspace(0.1, 1, 7)), Clipping("flat", 0.5)
    assert deviation(found(model, batch, clipping, method=method, physical_batch=size), defined(model, batch, clipping)) <= 1e-10


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_an_empty_batch_gives_zeros(method):
    gradients = found(network(), batch_of(0), Clipping("flat", 1.0), method=method)
    assert not any(g.any() for g in gradients.values())


def test_a_slice_of_images_below_the_physical_batch_is_all_that_is_computed_at_once():
    seen = []
    model = network()
    model[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    found(model, batch_of(7), Clipping("flat", 1.0), physical_batch=3)
    assert seen[-3:] == [3, 3, 1]  # those before are tests of the network
    assert max(seen) == 3


def dice(outputs, targets):
    """One minus soft Dice of each image, and its pixels' cross-entropy."""
    classes = (targets[:, None] == torch.arange(3)[:, None, None]).to(outputs)
    found = outputs.softmax(1)
    overlap = (2 * (found * classes).sum((2, 3)) + 1) / (found.sum((2, 3)) + classes.sum((2, 3)) + 1)
    return (1 - overlap).mean() + F.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("loss", "method"),
    [*((dice, method) for method in METHODS), *((partial(default_loss, "segmentation"), method) for method in ("book-keeping", "loop"))],
)
def test_segmentation_loss(loss, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)).double()
    batch = DrawnBatch(torch.randn(4, 3, 8, 8).double(), torch.randint(3, (4, 8, 8)), np.ones(4))
    clipping = Clipping("flat", 0.3)
    assert deviation(found(model, batch, clipping, loss, method=method), defined(model, batch, clipping, loss)) <= 1e-10


def test_the_loss_of_an_example_is_that_of_its_own_batch():
    """A loss that is no mean over examples: batch losses would give other gradients."""
    model, batch, clipping = network(torch.float64), batch_of(4, torch.float64), Clipping("flat", 0.3)
    weights = torch.tensor([1.0, 5.0, 0.2]).double()

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, weights) + outputs.square().sum()

    expected = defined(model, batch, clipping, loss)
    for method in METHODS:
        assert deviation(found(model, batch, clipping, loss, method=method), expected) <= 1e-10


GROUPS, INSTANCES = ("group", {"num_groups": 2}), ("instance", {"affine": True})
MONAI = {
    "UNet, instance norm": (lambda: UNet(2, 3, 2, (4, 8, 16), (2, 2), num_res_units=1, norm=INSTANCES), "segmentation"),
    "UNet, group norm": (lambda: UNet(2, 3, 2, (4, 8), (2,), num_res_units=2, norm=GROUPS), "segmentation"),
    "BasicUNet": (lambda: BasicUNet(2, 3, 2, features=(4, 4, 8, 8, 8, 4), norm=GROUPS), "segmentation"),
    "DenseNet": (lambda: DenseNet(2, 3, 2, 4, 4, (2, 2), norm=GROUPS), "classification"),
    "ViT": (lambda: ViT(3, (16, 16), (8, 8), 12, 16, 1, 2, classification=True, spatial_dims=2, num_classes=2), "vit"),
}


@pytest.mark.parametrize("name", MONAI)
def test_monai_networks_by_the_automatic_choice(name):
    make, kind = MONAI[name]
    torch.manual_seed(0)
    model = make().double().train()
    segments: Kind = "segmentation" if kind == "segmentation" else "classification"
    targets = torch.randint(2, (3, 16, 16)) if segments == "segmentation" else torch.arange(3) % 2
    batch = DrawnBatch(torch.randn(3, 3, 16, 16).double(), targets, np.array([1.0, 0.5, 1.0]))
    if kind == "vit":
        model = First(model)

    def loss(outputs, targets):
        return default_loss(segments, outputs, targets)

    clipping = Clipping("flat", 0.5)
    assert deviation(found(model, batch, clipping, loss), defined(model, batch, clipping, loss)) <= 1e-10
    assert method_for(model)[0] == ("functional" if kind == "vit" else "book-keeping")


class First(nn.Module):
    """MONAI's ViT returns hidden states too."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)[0]


def test_a_network_that_cannot_be_vectorized_takes_the_loop():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(192, 3)), nn.Linear(3, 3)

        def forward(self, x):
            x = x.flatten(1)
            x = x @ self.a if float(x.detach().sum()) > 0 else -x @ self.a
            return self.b(x)

    model, batch, clipping = Branching().double(), batch_of(5, torch.float64), Clipping("flat", 1.0)
    assert method_for(model)[0] == "functional"  # as far as the structure tells
    assert deviation(found(model, batch, clipping), defined(model, batch, clipping)) <= 1e-10
    name, why = method_for(model)
    assert name == "loop"
    assert "the network itself (Branching)" in why
    assert "vmap" in why
    with pytest.raises(PppmlError, match="method functional does not fit"):
        found(model, batch, clipping, method="functional")


def test_recurrent_networks_have_a_method():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.lstm(x.flatten(2).mT)[0][:, -1])

    model, batch, clipping = Reader().double(), batch_of(3, torch.float64), Clipping("flat", 0.2)
    assert deviation(found(model, batch, clipping), defined(model, batch, clipping)) <= 1e-10


# -- the bound --------------------------------------------------------------------------------------------------------------------------

HOSTILE = {
    "zeros": lambda x: x * 0,
    "constant": lambda x: x * 0 + 7,
    "1e6": lambda x: x * 1e6,
    "1e15": lambda x: x * 1e15,
    "1e30": lambda x: x * 1e30,
    "3e38": lambda x: x * 0 + 3e38,
    "one huge pixel": lambda x: torch.where(torch.arange(x.numel()).reshape(x.shape) == 5, 1e30, x),
    "1e-30": lambda x: x * 1e-30,
    "tiny differences": lambda x: 1e4 + 1e-3 * x,
    "NaN": lambda x: x * math.nan,
    "one NaN": lambda x: torch.where(torch.arange(x.numel()).reshape(x.shape) == 5, math.nan, x),
    "infinity": lambda x: x * math.inf,
    "one infinity": lambda x: torch.where(torch.arange(x.numel()).reshape(x.shape) == 5, -math.inf, x),
}


def plain_network(dtype):
    """Without normalization: huge pixels make huge gradients."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 64, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 64),
        nn.ReLU(),
        nn.Linear(64, 3),
    ).to(dtype)


def bounded(outputs, targets):
    """A loss whose gradient stays finite, so that huge activations reach the weights' gradients."""
    return (outputs * (targets[:, None] + 1.0)).sum(1).mean()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["flat", "per-layer", "automatic"])
@pytest.mark.parametrize("method", METHODS)
def test_no_example_adds_more_than_its_share_of_the_clip(method, kind, dtype):
    usual = batch_of(1, dtype, [0.7])
    # Norms are the same for all kinds: what is made of huge ones, and of none, differs.
    tries = ((bounded, 1e-3), (bounded, 1.0), (F.cross_entropy, 1e-3))[: 3 if kind == "flat" else 1]
    for make in (network, plain_network):
        model = make(dtype)
        for name, spoil in HOSTILE.items():
            batch = DrawnBatch(spoil(usual[0]), usual[1], usual.shares)
            for loss, clip in tries:
                gradients = found(model, batch, Clipping(kind, clip), loss, method=method)
                assert norm(gradients) <= 0.7 * clip * (1 + 1e-6), (name, clip, make)  # False for NaN
                if "NaN" in name or "infinity" in name:
                    assert norm(gradients) == 0, name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_hostile_examples_do_not_touch_what_the_others_add(method, dtype):
    model, clipping = plain_network(dtype), Clipping("flat", 1.0)
    good = batch_of(4, dtype)
    bad = [spoil(batch_of(1, dtype)[0]) for name, spoil in HOSTILE.items() if "NaN" in name or "infinity" in name]
    order = [0, 4, 1, 5, 6, 2, 7, 3]
    mixed = DrawnBatch(torch.cat([good[0], *bad])[order], torch.cat([good[1], good[1]])[order], np.ones(8))
    alone, together = (found(model, batch, clipping, method=method) for batch in (good, mixed))
    assert deviation(together, alone) <= (1e-6 if dtype == torch.float32 else 1e-14)
    only_bad = picked(mixed, [1, 3, 4, 6])
    assert norm(found(model, only_bad, clipping, method=method)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_an_output_that_is_not_finite_counts_even_where_the_gradient_is(method):
    class Leaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(192, 3)

        def forward(self, x):
            flat = x.flatten(1)
            return torch.cat([self.a(flat), torch.where(flat[:, :1] > 100, math.inf, flat[:, :1])], 1)

    def loss(outputs, targets):
        return F.cross_entropy(outputs[:, :3], targets)

    model, batch, clipping = Leaking(), batch_of(3), Clipping("flat", 1.0)
    batch[0][1, 0, 0, 0] = 101
    expected = found(model, picked(batch, [0, 2]), clipping, loss, method=method)
    assert deviation(found(model, batch, clipping, loss, method=method), expected) <= 1e-6


@pytest.mark.parametrize("scale", [1e160, 1e-200])
@pytest.mark.parametrize("method", METHODS)
def test_squares_that_leave_float64(method, scale):
    model, clipping = plain_network(torch.float64), Clipping("flat", 1e-3)
    batch = batch_of(2, torch.float64)

    def loss(outputs, targets):
        return bounded(outputs, targets) * scale

    gradients = found(model, batch, clipping, loss, method=method)
    assert norm(gradients) <= 2e-3 * (1 + 1e-12)
    if scale > 1:  # clipped to the norm, and in the direction of the gradient
        usual = found(model, batch, clipping, lambda o, t: bounded(o, t) * 1e3, method=method)
        assert deviation(gradients, usual) <= 1e-10


class Cancelling(nn.Module):
    """A large layer whose gradient cancels over positions: computed norms are noise of activations that can be as large as one likes."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(96, 96)
        signs = torch.tensor([0.1, 0.2, -0.3, 0.7, -0.7])
        self.register_buffer("signs", signs - signs.mean(), persistent=False)

    def forward(self, x):
        return (self.a(x) * self.signs[:, None]).sum(1)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e8, 1e12])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_cancel_keep_the_bound(method, size):
    model = Cancelling()
    row = torch.randn(1, 1, 96, generator=torch.Generator().manual_seed(1))
    batch = DrawnBatch((size * row).expand(1, 5, 96) + torch.randn(1, 5, 96) * size * 1e-7, torch.zeros(1, dtype=torch.int64), np.ones(1))
    for clip in (1e-3, 1.0):
        gradients = found(model, batch, Clipping("flat", clip), bounded, method=method)
        assert norm(gradients) <= clip * (1 + 1e-6)


def test_gradients_that_cancel_are_computed_alone(monkeypatch):
    """Without that, what enters the sum is larger than the clip: the test above would not see a book-keeping that gets it right by luck."""
    model, size = Cancelling(), 1e8
    row = torch.randn(1, 1, 96, generator=torch.Generator().manual_seed(1))
    images = (size * row).expand(1, 5, 96) + torch.zeros(1, 5, 96)
    batch = DrawnBatch(images, torch.zeros(1, dtype=torch.int64), np.ones(1))
    alone = []
    monkeypatch.setattr(per_example, "add_loop", lambda *args: alone.append(args[-1]))
    found(model, batch, Clipping("flat", 1.0), bounded)
    assert alone == [[0]]
    monkeypatch.setattr(book_keeping, "ROUNDING", math.inf)
    assert norm(found(model, batch, Clipping("flat", 1e-3), bounded)) > 1e-3 * 1.01


def test_usual_examples_are_not_computed_alone(monkeypatch):
    alone = []
    monkeypatch.setattr(per_example, "add_loop", lambda *args: alone.extend(args[-1]))
    for kind in ("flat", "per-layer", "automatic"):
        found(network(), batch_of(16), Clipping(kind, 0.1))
    assert alone == []


# -- randomness and state ---------------------------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Whose gradient shows each example's mask."""

    def __init__(self):
        super().__init__()
        self.drop, self.a = nn.Dropout(0.5), nn.Linear(256, 1, bias=False)

    def forward(self, x):
        return self.a(self.drop(x))


@pytest.mark.parametrize("method", METHODS)
def test_dropout_draws_for_each_example(method):
    batch = DrawnBatch(torch.ones(2, 256), torch.zeros(2), np.ones(2))
    model = Dropping().train()
    torch.manual_seed(0)
    masks = found(model, batch, Clipping("flat", 1e9), lambda o, t: o.sum(), method=method)["a.weight"]
    kept = masks.flatten().div(2).round().int().bincount(minlength=3)  # by none, one or both of the examples
    assert kept.min() > 20  # 64, 128, 64 expected: below 20 with a probability below 1e-11
    model.eval()
    assert found(model, batch, Clipping("flat", 1e9), lambda o, t: o.sum(), method=method)["a.weight"].unique().tolist() == [2.0]


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_first_use_draws_no_random_numbers_of_its_own(method):
    batch = DrawnBatch(torch.ones(4, 256), torch.zeros(4), np.ones(4))
    for model in (Dropping(), nn.Sequential(Dropping(), nn.utils.parametrizations.weight_norm(nn.Linear(1, 1)))):
        if method == "book-keeping" and isinstance(model, nn.Sequential):
            continue
        out = []
        for _ in range(2):  # on first use there are tests, later there are none
            torch.manual_seed(1)
            out.append((found(model, batch, Clipping("flat", 1.0), lambda o, t: o.sum(), method=method), torch.rand(1)))
        assert all(torch.equal(out[0][0][n], out[1][0][n]) for n in out[0][0])
        assert out[0][1] == out[1][1]


def tf32():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def tf32_allowed():
    before = tf32()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("tf32_allowed")
@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_sum_is_computed_in_tf32(method):
    """On a GPU it would round activations and gradients to ten bits: other norms than those of what enters the sum."""
    seen = []

    class Looking(nn.Module):
        def forward(self, x):
            seen.append(tf32())
            if x.requires_grad and method != "functional":
                x.register_hook(lambda _: seen.append(tf32()))
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Looking(), nn.Flatten(), nn.Linear(144, 3))
    found(model, batch_of(4), Clipping("flat", 1.0), method=method)
    assert set(seen) == {(False, False)}
    assert tf32() == (True, True)


@pytest.mark.parametrize("method", METHODS)
def test_model_and_batch_stay_as_they_are(method):
    model, batch = network(), batch_of(4)
    batch[0][1] = math.nan
    state, mode = copy.deepcopy(model.state_dict()), model.training
    images, shares = batch[0].clone(), batch.shares.copy()
    frozen = model[-1].bias.requires_grad_(False)
    clipped_sum(model, F.cross_entropy, batch, Clipping("flat", 1.0), method=method)
    assert all(torch.equal(state[n], v) for n, v in model.state_dict().items())
    assert model.training == mode
    assert torch.equal(batch[0].nan_to_num(), images.nan_to_num())
    assert np.array_equal(batch.shares, shares)
    assert frozen.grad is None
    assert not any(m._forward_hooks for m in model.modules())
    for p in model.parameters():
        if p.requires_grad:
            assert p.grad.shape == p.shape
            assert p.grad.dtype == p.dtype
            assert not p.grad.requires_grad


def test_gradients_of_an_earlier_step_are_replaced():
    model, batch = network(), batch_of(3)
    clipped_sum(model, F.cross_entropy, batch, Clipping("flat", 1.0))
    first = [p.grad.clone() for p in model.parameters()]
    clipped_sum(model, F.cross_entropy, batch, Clipping("flat", 1.0))
    assert all(torch.equal(a, p.grad) for a, p in zip(first, model.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_it_works_where_gradients_are_off(method):
    model, batch = network(), batch_of(3)
    expected = found(model, batch, Clipping("flat", 1.0), method=method)
    with torch.no_grad():
        assert deviation(found(model, batch, Clipping("flat", 1.0), method=method), expected) == 0


# -- refusals ---------------------------------------------------------------------------------------------------------------------------


def test_a_batch_without_shares_is_refused():
    with pytest.raises(PppmlError, match="no shares"):
        clipped_sum(network(), F.cross_entropy, tuple(batch_of(3)), Clipping("flat", 1.0))


@pytest.mark.parametrize("shares", [[1.0, 1.0], [1.0, 1.0, 1.5], [1.0, -0.1, 1.0], [1.0, math.nan, 1.0], [[1.0, 1.0, 1.0]]])
def test_shares_that_bound_nothing_are_refused(shares):
    with pytest.raises(PppmlError, match="shares are 3 numbers"):
        clipped_sum(network(), F.cross_entropy, batch_of(3, shares=shares), Clipping("flat", 1.0))


def test_a_network_that_is_not_trained_is_refused():
    with pytest.raises(PppmlError, match="no parameter"):
        clipped_sum(network().requires_grad_(False), F.cross_entropy, batch_of(3), Clipping("flat", 1.0))


def test_an_unknown_method_is_refused():
    with pytest.raises(PppmlError, match="no method 'ghost'"):
        clipped_sum(network(), F.cross_entropy, batch_of(3), Clipping("flat", 1.0), method="ghost")


def test_layers_of_clipping_are_the_modules_that_are_book_kept():
    model = network()
    assert max(layers_of([n for n, _ in model.named_parameters()])) + 1 == len(book_keeping.leaves(model))

"""Which tensors are shared, by network; and how head and body are trained."""

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, UNet
from torch import nn

from pppml_core.learning.arrays import snapshot
from pppml_core.learning.gradients import plain_gradients
from pppml_core.testing.local_data import FixedData, small_network
from pppml_personalization_baselines.parts import head_names, train_part

GRADIENTS = plain_gradients(torch.nn.functional.cross_entropy)
TRAINING = {"epochs": None, "steps": None, "schedule": "constant", "warmup_rounds": 0, "optimizer": {"use": "sgd", "momentum": 0.0}}


def unet(norm="batch", units=1):
    return UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=units, norm=norm)


def densenet():
    return DenseNet(2, 1, 3, init_features=4, growth_rate=2, block_config=(2, 2))


def cnn():
    """Group normalization, as small-cnn."""
    net = nn.Sequential()
    net.add_module("features", nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)))
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(4, 3))
    return net


def personal(rule, model):
    return {n for n, t in model.state_dict().items() if t.is_floating_point() and not rule.shared(n, model)}


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
@pytest.mark.parametrize(
    ("network", "head"),
    [
        (lambda: unet(), {"model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"}),
        (lambda: unet("instance"), {"model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"}),
        (lambda: unet(units=0), {"model.2.conv.weight", "model.2.conv.bias"}),
        (densenet, {"class_layers.out.weight", "class_layers.out.bias"}),
        (cnn, {"head.weight", "head.bias"}),
        (small_network, {"head.weight", "head.bias"}),
    ],
    ids=["unet", "unet-instance", "unet-plain", "densenet", "cnn", "small"],
)
def test_the_head_is_the_last_layer(make, name, network, head):
    model, rule = network(), make(name)
    assert personal(rule, model) == head
    assert rule.misfits(model, {}, TRAINING) == []
    assert not rule.has_global_model


def test_what_follows_the_last_layer_goes_with_it(make):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.PReLU())
    expected = {"2.weight", "2.bias", "3.weight", "3.bias", "3.running_mean", "3.running_var", "4.weight"}
    assert personal(make("fedper"), net) == expected
    assert head_names(net, "auto") == expected | {"3.num_batches_tracked"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("head.bias",), {"head.bias"}),
        (("head",), {"head.weight", "head.bias"}),
        ("he?d.*", {"head.weight", "head.bias"}),
        (("norm", "*.bias"), {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "conv.bias", "head.bias"}),
    ],
)
def test_patterns(make, patterns, expected):
    rule = make("fedper", head=patterns)
    assert personal(rule, small_network()) == expected
    assert rule.misfits(small_network(), {}, TRAINING) == []


def test_a_tensor_with_two_names_is_personal_with_both(make):
    net = nn.Sequential()
    net.add_module("first", nn.Linear(4, 4))
    net.add_module("last", nn.Linear(4, 4))
    net.first.weight = net.last.weight
    assert personal(make("fedper", head="last.weight"), net) == {"last.weight", "first.weight"}


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("haed.*", ["'haed.*' matches no parameter", "did you mean 'head"]),
        (("head", "zzz"), ["'zzz' matches no parameter", "the last parameter is 'head.bias'"]),
        ("*", ["whole network"]),
    ],
)
def test_heads_that_are_nothing_or_everything(make, name, head, words):
    (text,) = make(name, head=head).misfits(small_network(), {}, TRAINING)
    assert text.startswith("personalization.head: ")
    assert all(w in text for w in words), text


def test_auto_on_a_single_layer_is_everything(make):
    assert "whole network" in make("fedper").misfits(nn.Linear(2, 2), {}, TRAINING)[0]


# -- fedbn --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "mark", "count"), [(lambda: unet(), ".adn.N.", 6), (densenet, "norm", 10)], ids=["unet", "densenet"])
@pytest.mark.parametrize("layers", ["batch", "all"])
def test_fedbn_keeps_every_batch_normalization(make, network, mark, count, layers):
    model, rule = network(), make("fedbn", layers=layers)
    expected = {n for n, t in model.state_dict().items() if mark in n and t.is_floating_point()}
    assert personal(rule, model) == expected
    assert len(expected) == 4 * sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) > 0
    assert rule.misfits(model, {}, TRAINING) == []


def test_fedbns_update_holds_the_shared_layers_alone(make):
    rule, model = make("fedbn"), small_network()
    update, state = rule.local_update(model, FixedData(), GRADIENTS, rule.init(model))
    assert update.delta.keys() == {"conv.weight", "conv.bias", "head.weight", "head.bias"}
    assert state == {"trained": True}
    assert not torch.equal(model.norm.weight, small_network().norm.weight), "the site's own are trained and stay in its model"


def test_fedbn_all(make):
    model = cnn()
    assert personal(make("fedbn"), model) == set()
    assert personal(make("fedbn", layers="all"), model) == {"features.1.weight", "features.1.bias"}
    other = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.InstanceNorm1d(3, affine=True, track_running_stats=True))
    names = {"1.weight", "1.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var"}
    assert personal(make("fedbn", layers="all"), other) == names
    assert any("goes beyond" in r for r in make("fedbn", layers="all").remarks(TRAINING))
    assert not make("fedbn").remarks(TRAINING)


def test_fedbn_without_normalization_says_what_to_do(make):
    (text,) = make("fedbn").misfits(cnn(), {}, TRAINING)
    assert "`norm: batch`" in text
    assert "layers: all" in text
    (text,) = make("fedbn").misfits(unet("instance"), {}, TRAINING)
    assert "layers: all" not in text, "its instance normalization has nothing that could stay"
    assert make("fedbn", layers="all").misfits(unet("instance"), {}, TRAINING)
    assert not make("fedbn", layers="all").misfits(cnn(), {}, TRAINING)


# -- training a part ----------------------------------------------------------------------------------------------------------------------


class Product(nn.Module):
    """``h * phi * x``: a body and a head of one number each."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
        with torch.no_grad():
            self.body.weight.fill_(0.7)
            self.head.weight.fill_(-0.4)

    def forward(self, x):
        return self.head(self.body(x))


def product_site():
    x, y = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor([[3.0], [1.0]], dtype=torch.float64)

    class Site:
        def train(self, model, rule, *, parameters=None, epochs=None, steps=None, purpose="train"):
            for _ in range(steps or epochs or 2):
                loss = rule(model, (x, y))
                with torch.no_grad():
                    for p in parameters or model.parameters():
                        p -= 0.1 * p.grad
            return {"loss": loss}

    return Site(), x.numpy()[:, 0], y.numpy()[:, 0]


def test_fedrep_trains_the_head_first_and_the_body_under_it(make):
    site, x, y = product_site()
    model = Product()
    update, state = make("fedrep", head_steps=3).local_update(model, site, plain_gradients(nn.functional.mse_loss), {"trained": False})
    h, phi = -0.4, 0.7
    for _ in range(3):
        h -= 0.1 * np.mean(2 * (h * phi * x - y) * phi * x)
    for _ in range(2):
        phi -= 0.1 * np.mean(2 * (h * phi * x - y) * h * x)
    assert model.head.weight.item() == pytest.approx(h, abs=1e-14)
    assert model.body.weight.item() == pytest.approx(phi, abs=1e-14)
    assert update.delta["body.weight"].item() == pytest.approx(phi - 0.7, abs=1e-14)
    assert update.delta.keys() == {"body.weight"}
    assert state == {"trained": True}


def test_fedper_trains_both_together(make):
    site, x, y = product_site()
    model = Product()
    update, _ = make("fedper").local_update(model, site, plain_gradients(nn.functional.mse_loss), {"trained": False})
    h, phi = -0.4, 0.7
    for _ in range(2):
        e = 2 * (h * phi * x - y)
        h, phi = h - 0.1 * np.mean(e * phi * x), phi - 0.1 * np.mean(e * h * x)
    assert (model.head.weight.item(), model.body.weight.item()) == pytest.approx((h, phi), abs=1e-14)
    assert update.delta.keys() == {"body.weight"}


@pytest.mark.parametrize("part", ["head", "conv"])
def test_a_part_is_trained_and_nothing_else_moves(part):
    model, names = small_network(), {f"{part}.weight", f"{part}.bias"}
    model.conv.bias.requires_grad_(part == "conv")
    before = snapshot(model)
    train_part(model, names, FixedData(), GRADIENTS)
    moved = {n for n, t in snapshot(model).items() if not torch.equal(t, before[n])}
    assert moved == names, "no other parameter, no running statistic, no counter"
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ([] if part == "conv" else ["conv.bias"])


def test_the_network_comes_back_trainable_when_training_fails():
    model = small_network()

    def broken(network, batch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        train_part(model, {"head.weight"}, FixedData(), broken)
    assert all(p.requires_grad for p in model.parameters())


def test_the_head_learns_on_the_representation_it_is_evaluated_with():
    """While the head trains, the body is the function it is in evaluation mode: logistic regression on its features gives the same head."""
    model = small_network(dtype=torch.float64)
    model.norm.running_mean += 0.3
    model.eval()
    head = nn.Linear(64, 3).double()
    head.load_state_dict(model.head.state_dict())
    for images, targets in FixedData(dtype=torch.float64, steps=4).batches():
        with torch.no_grad():
            features = model[:-1](images)
        loss = nn.functional.cross_entropy(head(features), targets)
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        with torch.no_grad():
            for p, g in zip(head.parameters(), gradients, strict=True):
                p -= 0.1 * g
    train_part(model, {"head.weight", "head.bias"}, FixedData(dtype=torch.float64, steps=4), GRADIENTS)
    torch.testing.assert_close(model.head.weight, head.weight, rtol=1e-12, atol=1e-12)


def test_batch_normalization_of_the_body_learns_statistics_with_the_body_only(make):
    model, rule = small_network(), make("fedrep", head_steps=5)
    update, _ = rule.local_update(model, FixedData(steps=2), GRADIENTS, rule.init(model))
    assert int(model.norm.num_batches_tracked) == 2, "the body's two steps; none of the head's five"
    assert torch.count_nonzero(update.delta["norm.running_mean"])
    inside = make("fedrep", head=("norm", "head"), head_steps=5)
    model = small_network()
    inside.local_update(model, FixedData(steps=2), GRADIENTS, inside.init(model))
    assert int(model.norm.num_batches_tracked) == 5, "in the head it is the other way round"

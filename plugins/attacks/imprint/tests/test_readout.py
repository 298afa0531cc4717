"""Read-outs: exact where they should be, with the closed-form error under noise, and none where the network has nothing to read."""

import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import nn

from pppml_core.interfaces.attack import AdversaryView, Defence, Seen, Vantage
from pppml_imprint.attack import Imprint
from pppml_imprint.config import ImprintConfig
from pppml_imprint.planting import is_planted
from pppml_imprint.staircase import steps

PASSIVE = ImprintConfig(planted=False)


def perceptron(activation=nn.ReLU, bias=True, behind=None):
    def make():
        torch.manual_seed(1)
        return nn.Sequential(
            OrderedDict(
                flat=nn.Flatten(), one=nn.Linear(256, 40, bias=bias), on=activation(), two=behind or nn.Linear(40, 20), off=nn.Sigmoid(),
                last=nn.Linear(20, 3),
            )
        )  # fmt: skip

    return make


def errors(found, images):
    """Of the best reading of each image."""
    return np.square(found[:, None].astype(np.float64) - images[None]).mean(axis=(2, 3, 4)).min(axis=0)


# -- as it is -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [None, perceptron(), perceptron(nn.Tanh)], ids=["imprint-front", "perceptron", "tanh"])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_one_image_exactly(world, draw, network, clip):
    """To 1e-6 in float64; a clip is a common factor and changes nothing."""
    defence = Defence() if clip is None else Defence("clip-only", clip=clip, clips="example", divisor=1.0)
    here = world(batch=1, network=network, defence=defence)
    images = draw(1, np.random.default_rng(0))
    update = here.update(here.weights(), images, torch.float64)
    found = Imprint(PASSIVE).run(here.view(here.weights(), update), None, here.ctx).guess["images"]
    assert found.shape == (1, 1, 16, 16)
    assert np.abs(found - images).max() < 1e-6


def test_several_images_that_rows_hold_alone(world, draw):
    """Rows that look for brightness, from one side or the other: the darkest and the brightest image are alone in some."""
    here = world(batch=4, network=perceptron())
    images = draw(4, np.random.default_rng(5))
    weights, value = here.weights(), np.sort(images.mean(axis=(1, 2, 3)))
    sign = np.where(np.arange(40) % 2, 1.0, -1.0)
    at = np.where(sign > 0, (value[2] + value[3]) / 2, (value[0] + value[1]) / 2)
    # Rows of their own besides, so that it is no planted layer.
    own = np.random.default_rng(6).normal(size=(40, 256)) * 1e-6
    weights["one.weight"] = (sign[:, None] / 256 + own - own.mean(axis=1, keepdims=True)).astype(np.float32)
    weights["one.bias"] = (-sign * at).astype(np.float32)
    assert not is_planted(weights, layer_of(here))
    found = Imprint(PASSIVE).run(here.view(weights, here.update(weights, images)), None, here.ctx).guess["images"]
    order = np.argsort(images.mean(axis=(1, 2, 3)))
    assert errors(found, images[order][[0, 3]]).max() < 1e-6
    assert errors(found, images[order][[1, 2]]).min() > 1e-3


def layer_of(here):
    from pppml_imprint.attack import _layer

    return _layer(here.ctx)


def test_rows_that_do_not_agree_give_one_mixture(world, draw):
    here = world(batch=8, rows=64)
    images = draw(8, np.random.default_rng(0))
    found = Imprint(PASSIVE).run(here.view(here.weights(), here.update(here.weights(), images)), None, here.ctx).guess["images"]
    assert len(found) <= 2
    assert np.isfinite(found).all()


def test_an_update_of_zeros_gives_nothing(world):
    here = world()
    update = {n: np.zeros_like(a) for n, a in here.weights().items()}
    for weights in (here.weights(), Imprint(ImprintConfig()).plant(here.weights(), here.ctx)):
        found = Imprint(ImprintConfig()).run(here.view(weights, update), None, here.ctx).guess["images"]
        assert found.shape == (0, 1, 16, 16)


# -- planted ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [None, perceptron()], ids=["imprint-front", "perceptron"])
def test_planted(world, draw, network):
    here = world(batch=6, network=network)
    attack = Imprint(ImprintConfig())
    honest = here.weights()
    weights = attack.plant(honest, here.ctx)
    layer = layer_of(here)
    assert {n: (a.shape, a.dtype) for n, a in weights.items()} == {n: (a.shape, a.dtype) for n, a in honest.items()}
    assert (is_planted(weights, layer), is_planted(honest, layer)) == (True, False)
    changed = {n for n in weights if not np.array_equal(weights[n], honest[n])}
    assert changed == {layer.weight, layer.bias, *layer.after}
    images = draw(6, np.random.default_rng(4))
    bins = np.searchsorted(-weights[layer.bias], images.reshape(6, -1) @ weights[layer.weight][0])
    alone = np.bincount(bins)[bins] == 1
    assert alone.sum() >= 3, "choose another seed"
    found = attack.run(here.view(weights, here.update(weights, images)), None, here.ctx).guess["images"]
    assert errors(found, images[alone]).max() < 1e-6


def test_the_planted_layer_lets_the_network_tell_images_apart(world, draw):
    here = world()
    weights = Imprint(ImprintConfig()).plant(here.weights(), here.ctx)
    model = here.ctx.model(Seen(1, weights, weights, ("a",), ()))
    images = torch.from_numpy(draw(50, np.random.default_rng(0)))
    with torch.no_grad():
        added = model.back(torch.relu(model.front(images.flatten(1))))
    assert 0.3 < float(added.std() / images.std()) < 3
    assert abs(float(added.mean(dim=0).mean())) < 0.1


def test_planting_follows_the_seed(world):
    one, same, other = (Imprint(ImprintConfig(query="random")).plant(w.weights(), w.ctx) for w in (world(), world(), world(seed=1)))
    assert all(np.array_equal(one[n], same[n]) for n in one)
    assert not np.array_equal(one["front.weight"], other["front.weight"])


def test_an_honest_server_plants_nothing(world):
    here = world()
    honest = here.weights()
    assert Imprint(PASSIVE).plant(honest, here.ctx) is honest


def concentrated(here, weights, image, clip):
    """The clipped update of one image; the share of its norm that is in the first layer; its norm in the model's units."""
    update = here.update(weights, image, torch.float64, Defence("dp", clip=clip, clips="example", divisor=1.0))
    squares = {n: float(np.square(u).sum()) for n, u in update.items()}
    return update, (squares["front.weight"] + squares["front.bias"]) / sum(squares.values()), 0.1 * clip


@pytest.mark.parametrize("planted", [True, False])
def test_the_error_under_noise_is_the_closed_form(world, draw, planted):
    """s^2 (|x|^2 + 1) / C^2 a pixel, across the image itself, along which the bias's own error adds: 20 draws of 255 degrees of freedom.

    The interval leaves 1e-9 on each side, widened by 3 % for terms of second order in the noise.
    """
    here = world(batch=1, rows=32, defence=Defence("dp", 0.02, "example", divisor=1.0))
    attack = Imprint(ImprintConfig(planted=planted))
    weights = attack.plant(here.weights(), here.ctx)
    image = draw(1, np.random.default_rng(7))
    update, share, norm = concentrated(here, weights, image, clip=0.02)
    assert (share > 0.99) is planted
    noise = 1e-3 * norm * share**0.5
    ctx = replace(here.ctx, defence=Defence("dp", 0.02, "example", noise, divisor=1.0))
    rng = np.random.default_rng(8)
    total = []
    for _ in range(20):
        noised = {n: (u + rng.normal(0, noise, u.shape)).astype(np.float32) for n, u in update.items()}
        found = attack.run(here.view(weights, noised), None, replace(ctx, low=ctx.low - 9, high=ctx.high + 9)).guess["images"]
        assert len(found) == 1
        off, along = (found[0] - image[0]).ravel(), image.ravel() / np.linalg.norm(image)
        total.append(float(np.square(off - (off @ along) * along).sum() / 255))
    wanted = noise**2 * (float(np.square(image).sum()) + 1) / (norm**2 * share)
    low, high = chi2.ppf([1e-9, 1 - 1e-9], 5100) / 5100
    print(planted, "measured", np.mean(total), "closed form", wanted, (low, high))
    assert 0.97 * low < np.mean(total) / wanted < 1.03 * high


def test_knowing_the_noise_is_worth_something(world, draw):
    """The median over 12 images of a sum under noise, each with its best reading."""
    here = world(batch=1, rows=64, defence=Defence("dp", 0.02, "example", divisor=1.0))
    attack = Imprint(ImprintConfig())
    weights = attack.plant(here.weights(), here.ctx)
    rng, mean = np.random.default_rng(3), {True: [], False: []}
    for _ in range(12):
        image = draw(1, rng)
        update, _, norm = concentrated(here, weights, image, clip=0.02)
        noise = 0.002 * norm
        noised = {n: (u + rng.normal(0, noise, u.shape)).astype(np.float32) for n, u in update.items()}
        for adaptive, values in mean.items():
            ctx = replace(here.ctx, defence=Defence("dp", 0.02, "example", noise, divisor=1.0), adaptive=adaptive)
            found = attack.run(here.view(weights, noised), None, ctx).guess["images"]
            values.append(errors(found, image)[0] if len(found) else 1.0)
    gain = 10 * np.log10(np.median(mean[False]) / np.median(mean[True]))
    print("gain in dB", gain, np.median(mean[True]))
    assert gain > 10


def test_steps_that_only_many_rows_together_show():
    """A step that two neighbouring rows do not show, and no step at all; each is wrong with a probability of 1e-3, for other seeds."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(60, 300))
    assert steps(flat) == [0, 60]
    stepped = flat.copy()
    stepped[:23] += 0.5 * rng.normal(size=300)
    edges = steps(stepped)
    assert len(edges) == 3
    assert abs(edges[1] - 23) <= 1
    assert np.square(np.diff(stepped, axis=0)).sum(axis=1)[22] / 2 < chi2.isf(1e-5, 300)


# -- where it does not apply --------------------------------------------------------------------------------------------------


class Convolution(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))


class Flipped(nn.Sequential):
    """Linear, but on another order of the pixels."""

    def __init__(self):
        super().__init__(nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, images):
        return super().forward(images.flip(-1).flatten(1))


@pytest.mark.parametrize(
    ("network", "said"),
    [(Convolution, r"\(Conv2d\) is not linear"), (Flipped, "not linear on the whole image"), (perceptron(bias=False), "has no bias")],
)
def test_networks_it_cannot_read(world, network, said):
    here = world(network=network)
    weights = here.weights()
    attack = Imprint(ImprintConfig())
    assert re.search(said, attack.misfit(here.view(weights, weights), here.ctx))
    assert attack.plant(weights, here.ctx) is weights


def test_nothing_is_planted_before_another_function(world):
    here = world(network=perceptron(nn.Tanh))
    honest = here.weights()
    planted = Imprint(ImprintConfig()).plant(honest, here.ctx)
    assert all(np.array_equal(planted[n], honest[n]) for n in honest)
    assert layer_of(here).after is None


def test_views_without_a_sum_or_without_the_layer(world):
    here = world()
    weights = here.weights()
    attack = Imprint(ImprintConfig())
    assert attack.misfit(here.view(weights, weights), here.ctx) == ""
    others = {n: a for n, a in weights.items() if n != "front.bias"}
    assert "front.bias does not leave the sites" in attack.misfit(here.view(weights, others), here.ctx)
    nothing = AdversaryView(Vantage("public", public=True), (Seen(1, weights, weights, ("a",), ()),))
    assert "no sum" in attack.misfit(nothing, here.ctx)


def test_a_vantage_without_the_model(world, draw):
    """Who does not get the weights cannot know that the layer was planted, and reads it as it is."""
    here = world(batch=1)
    image = draw(1, np.random.default_rng(0))
    update = here.update(here.weights(), image)
    found = Imprint(ImprintConfig()).run(here.view({}, update), None, here.ctx).guess["images"]
    assert errors(found, image)[0] < 1e-8

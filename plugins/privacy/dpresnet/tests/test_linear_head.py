"""Features that stay as they are, and a head that is all there is to train."""

from __future__ import annotations

import hashlib

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import pppml_core as pppml
from pppml_core.config import resolve
from pppml_core.errors import ConfigError
from pppml_core.learning.arrays import parameters_and_buffers
from pppml_core.randomness import seeded
from pppml_core.registry import Registry
from pppml_dpresnet import plugin
from pppml_dpresnet.config import LinearHeadConfig
from pppml_dpresnet.frozen import frozen
from pppml_dpresnet.linear_head import LinearHeadModel


class BatchNormed(nn.Module):
    """Features with everything that must not stay: running statistics, dropout, a buffer."""

    def __init__(self, spec, *, statistics: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(spec.channels, 6, 3), nn.BatchNorm2d(6, track_running_stats=statistics), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
        self.register_buffer("offset", torch.linspace(-1, 1, 6))
        self.fc = nn.Linear(6, len(spec.classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images).mean((2, 3)) + self.offset)


class NoHead(nn.Conv2d):
    """Ends without a linear layer."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3)


class HeadInTheMiddle(nn.Sequential):
    """A linear layer with as many outputs as classes, which is not the last step."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 64, 8), nn.Unflatten(1, (2, 4)))


def made(features, task, weights="random", seed=0, **settings):
    with seeded(seed):
        return LinearHeadModel(LinearHeadConfig(features=features, weights=str(weights), **settings)).build(task)


def pretrained(path, task, seed=9):
    """A weights file of BatchNormed with statistics of its own, and the network."""
    with seeded(seed):
        network = BatchNormed(task)
        network.body[1].running_mean.normal_()
        network.body[1].running_var.uniform_(0.5, 2)
        nn.init.normal_(network.body[1].weight)
        nn.init.normal_(network.body[1].bias)
    save_file(network.state_dict(), path)
    return network.eval()


def test_only_the_head_is_trained_and_shared(spec):
    task = spec((28, 28))
    model = made("scale-resnet9", task)
    trained = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"head.weight": (8, 1024), "head.bias": (8,)}
    travels = parameters_and_buffers(model, lambda name, model: True, share_buffers=True)
    assert [t.name for t in travels] == ["head.weight", "head.bias"]
    assert list(made(f"{__name__}:BatchNormed", task).buffers()) == [], "statistics would travel without noise"


def test_the_features_are_those_of_the_weights_file(spec, tmp_path):
    task, other = spec((12, 12)), spec((12, 12), classes=3)
    network = pretrained(tmp_path / "w.safetensors", task)
    images = torch.randn(5, 3, 12, 12)
    with torch.no_grad():
        network.fc = nn.Identity()
        wanted = network(images)
        model = made(f"{__name__}:BatchNormed", task, tmp_path / "w.safetensors")
        assert torch.allclose(model.train().features(images), wanted, atol=1e-6)
        # The file's own head does not matter: it may be of another task.
        assert torch.allclose(made(f"{__name__}:BatchNormed", other, tmp_path / "w.safetensors").features(images), wanted, atol=1e-6)
        standardized = model.standardized(wanted)
        plain = made(f"{__name__}:BatchNormed", task, tmp_path / "w.safetensors", standardize=False)
        assert torch.equal(plain.standardized(wanted), wanted)
    assert torch.allclose(standardized.mean(1), torch.zeros(5), atol=1e-6)
    assert torch.allclose(standardized.norm(dim=1), torch.full((5,), 6**0.5), rtol=1e-3), "one norm for all, so one clip suits all"


def test_training_changes_nothing_but_the_head(spec):
    task = spec((12, 12))
    model = made(f"{__name__}:BatchNormed", task).train()
    assert not [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    assert not any(m.training for m in model.features.modules())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(6, 3, 12, 12)), torch.arange(6)).backward()
        optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"head.weight", "head.bias"}
    images = torch.randn(4, 3, 12, 12)
    assert torch.allclose(model(images)[0], model(torch.cat([images[:1], 50 * images[1:]]))[0], atol=1e-5)
    assert torch.equal(model(images), model(images)), "no dropout"


def test_random_features_come_from_the_seed(spec):
    task = spec((16, 16))
    first, again, other = (made("scale-resnet9", task, seed=s).features[0][0].weight for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_frozen_equals_evaluation(spec):
    for network, shape in [
        (nn.Sequential(nn.BatchNorm1d(4)), (3, 4)),
        (nn.Sequential(nn.BatchNorm1d(4, affine=False)), (3, 4, 5)),
        (nn.Sequential(nn.BatchNorm3d(4)), (2, 4, 3, 3, 3)),
        (nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True)), (2, 4, 3, 3)),
    ]:
        network[0].running_mean.normal_()
        network[0].running_var.uniform_(0.5, 2)
        x = torch.randn(shape)
        wanted = network.eval()(x)
        assert torch.allclose(frozen(network)(x), wanted, atol=1e-5)
        assert not any(p.requires_grad for p in network.parameters())
        assert not [b for b in network.buffers() if b.is_floating_point()]


# -- refusals -------------------------------------------------------------------------------------------------------------------------


def test_without_weights_it_is_refused():
    registry = Registry.only(plugin)
    for section in ({"use": "linear-head", "features": "dp-resnet9"}, {"use": "linear-head"}):
        with pytest.raises(ConfigError, match=r"model.*(give `weights`|features)"):
            resolve({"task": "tiny", "model": section}, registry=registry)
    for values in ({"sha256": "0" * 64}, {"sha256": "abc"}):
        with pytest.raises(ValidationError, match="sha256"):
            LinearHeadConfig(features="dp-resnet9", weights="random" if len(values["sha256"]) == 64 else "file", **values)


def test_a_file_that_does_not_fit_is_refused(spec, tmp_path):
    task, path = spec((12, 12)), tmp_path / "w.safetensors"
    features = f"{__name__}:BatchNormed"
    state = {n: t.clone() for n, t in pretrained(path, task).state_dict().items()}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    made(features, task, path, sha256=digest)
    first = "body.0.weight"
    cases = {
        "has SHA-256": (path, {"sha256": "0" * 64}),
        f"no {first}": (save(tmp_path / "a", {n: t for n, t in state.items() if n != first}), {}),
        r"body.0.weight is \(6, 1, 3, 3\), not \(6, 3, 3, 3\)": (
            save(tmp_path / "b", state | {"body.0.weight": torch.zeros(6, 1, 3, 3)}),
            {},
        ),
        "not finite": (save(tmp_path / "c", state | {"offset": torch.full((6,), torch.nan)}), {}),
        "cannot be read": (tmp_path / "none", {}),
        "w.txt cannot be read": (text(tmp_path / "w.txt"), {}),
    }
    for reason, (file, settings) in cases.items():
        with pytest.raises(ConfigError, match=rf"model\.weights.*{reason}") as error:
            made(features, task, file, **settings)
        assert "sha" in reason.lower() or "not made of these images without noise" in error.value.hint
        (misfit,) = LinearHeadModel(LinearHeadConfig(features=features, weights=str(file), **settings)).misfits(task)
        assert misfit.startswith("model.weights")


def save(path, state):
    save_file(state, path)
    return path


def text(path):
    path.write_text("no tensors")
    return path


@pytest.mark.parametrize(
    ("features", "args", "reason"),
    [
        ("NoHead", {}, "no linear layer for 8 classes"),
        ("HeadInTheMiddle", {}, "gives an error"),
        ("BatchNormed", {"statistics": False}, "without running statistics"),
    ],
)
def test_features_that_cannot_serve(features, args, reason, spec):
    with pytest.raises(ConfigError, match=reason):
        made(f"{__name__}:{features}", spec((8, 8)), args=args)


def test_misfits(spec):
    factory = LinearHeadModel(LinearHeadConfig(features="scale-resnet9", weights="random"))
    assert factory.misfits(spec((28, 28))) == []
    assert "scale-resnet9 is a 2-D network" in factory.misfits(spec((16, 16, 16)))[0]
    assert "linear-head is for classification" in factory.misfits(spec((28, 28), kind="segmentation"))[0]
    state = torch.get_rng_state()
    factory.misfits(spec((28, 28)))
    assert torch.equal(state, torch.get_rng_state())


# -- a whole run ----------------------------------------------------------------------------------------------------------------------


def test_features_of_one_run_serve_the_next(tmp_path):
    """tiny-net is trained; its weights are the features of a linear head, which learns, and is exported without this plugin."""
    shared = {
        "task": {"use": "tiny", "sites": 2, "examples": 24},
        "training": {"optimizer": {"use": "sgd", "lr": 0.3}},
        "run": {"rounds": 4},
        "reporters": [],
        "registry": Registry.only(plugin),
    }
    first = pppml.Experiment(model="tiny-net", **shared).run(tmp_path / "first", report=False)
    weights = tmp_path / "first" / "model.safetensors"
    section = {"use": "linear-head", "features": "tiny-net", "weights": str(weights)}
    section["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    run = pppml.Experiment(model=section, **shared).run(tmp_path / "second", report=False)
    model, old = run.model(), first.model().state_dict()
    frozen_now = {n.removeprefix("features."): t for n, t in model.state_dict().items() if n.startswith("features.")}
    assert frozen_now
    assert all(torch.equal(t, old[n]) for n, t in frozen_now.items()), "nothing but the head has moved"
    assert float(model.head.weight.detach().abs().sum()) > 0
    pytest.importorskip("monai")
    assert run.export_bundle(tmp_path / "bundle").exists()

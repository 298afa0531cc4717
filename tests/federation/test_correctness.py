"""What a run computes, against loops and formulas written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from pppml_core.builtin.configs import TinyNetConfig, TinyTaskConfig
from pppml_core.builtin.tiny import TinyNet, TinyTask

ONE_STEP = {"steps": 1, "batch_size": 100, "optimizer": {"use": "sgd", "lr": 0.1}}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Initial weights made with plain torch, as a file and as a network."""
    torch.manual_seed(3)
    net = TinyNet(TinyNetConfig()).build(TinyTask(TinyTaskConfig()).spec())
    path = tmp_path_factory.mktemp("init") / "start.safetensors"
    save_file(net.state_dict(), path)
    return path, net


def all_data(dtype, sites=3):
    task = TinyTask(TinyTaskConfig(sites=sites))
    parts = [task.load(s.slug).train for s in task.sites()]
    return [
        (torch.from_numpy(np.stack([p.example(i)[0] for i in range(len(p))])).to(dtype), torch.from_numpy(p.labels().copy())) for p in parts
    ]


def sgd(net, images, labels, steps, lr=0.1):
    for _ in range(steps):
        loss = cross_entropy(net(images), labels)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p -= lr * g
    return net


def copy_of(net, dtype):
    import copy

    return copy.deepcopy(net).to(dtype)


def vector(state):
    return torch.cat([t.double().ravel() for t in state])


@pytest.mark.parametrize(("precision", "dtype", "tolerance"), [("float32", torch.float32, 1e-4), ("float64", torch.float64, 1e-10)])
def test_one_full_batch_step_a_round_is_centralized_sgd(go, start, precision, dtype, tolerance):
    path, net = start
    run = go(encoding="float", run={"rounds": 10}, training={**ONE_STEP, "init": str(path), "precision": precision})
    data = all_data(dtype)
    expected = sgd(copy_of(net, dtype), torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]), steps=10)
    got = load_file(run.folder / "model.safetensors")
    a, b = vector(expected.parameters()), vector(got[n] for n, _ in expected.named_parameters())
    begun = vector(net.parameters())
    assert got["0.weight"].dtype == dtype
    a, b, begun = a.detach(), b.detach(), begun.detach()
    assert float((a - begun).norm()) > 0.01
    assert float((a - b).norm() / a.norm()) < tolerance
    # The way is right too, not only the place: relative to the distance covered.
    assert float((a - b).norm() / (a - begun).norm()) < tolerance * 100


def test_fixed_point_is_within_the_stated_error_of_the_exact_mean(go, start, flat):
    path, net = start
    run = go(run={"rounds": 1}, encoding={"bits": 12, "start": 0.25}, training={**ONE_STEP, "init": str(path)})
    levels, sizes = 2**11 - 1, [24, 25, 26]
    rounded = [round(n / 26 * levels) for n in sizes]
    begun = flat(run, net.state_dict())
    deltas = []
    for images, labels in all_data(torch.float64):
        local = sgd(copy_of(net, torch.float64), images, labels, steps=1)
        deltas.append(flat(run, {n: t.detach() for n, t in local.state_dict().items()}) - begun)
    assert max(np.abs(d).max() for d in deltas) < 0.25, "nothing saturates"
    exact = sum(k * d for k, d in zip(rounded, deltas, strict=True)) / sum(rounded)
    got = flat(run, load_file(run.folder / "model.safetensors")) - begun
    bound = 3 * (0.25 / levels) / (sum(rounded) / levels)
    error = np.abs(got - exact)
    assert error.max() <= bound + 1e-6
    assert error.max() > bound / 10, "the bound is not idle: the encoding does round"
    assert abs(float(np.mean(got - exact))) < bound / 20, "and without bias"


def test_fedavg_is_the_weighted_mean_of_what_was_sent(go, contributions, flat):
    run = go(run={"rounds": 1, "transcript": "payloads"}, training={"epochs": 2, "batch_size": 7})
    sent = contributions(run, 1)
    assert [sent.weights[f"site_{i}"] for i in (1, 2, 3)] == pytest.approx([24 / 26, 25 / 26, 1.0], abs=1 / 32767)
    begun = flat(run, run._assembly.initial_weights)
    moved = flat(run, load_file(run.folder / "model.safetensors")) - begun
    np.testing.assert_allclose(moved, sent.mean(len(begun)), atol=2e-7)
    updates = {s: v[: len(begun)] / sent.weights[s] for s, v in sent.values.items()}
    assert np.linalg.norm(updates["site_1"] - updates["site_2"]) > 0.1 * np.linalg.norm(updates["site_1"]), "the sites differ"


def test_sites_of_very_unequal_size_weigh_by_their_examples(go, contributions):
    class Unequal(TinyTask):
        def load(self, site):
            from pppml_core.interfaces.task import SiteData
            from pppml_core.learning.data.examples import Subset

            data = super().load(site)
            return SiteData(Subset(data.train, np.arange(3)), data.validation, data.test) if site == "site_1" else data

    run = go(task=Unequal(TinyTaskConfig(examples=96)), run={"rounds": 1, "transcript": "payloads"})
    weights = contributions(run, 1).weights
    assert weights["site_1"] == pytest.approx(3 / 98, abs=1 / 32767)
    assert weights["site_3"] == 1.0


def test_weight_cap(go, contributions, flat):
    capped = {"use": "fedavg", "weight_cap": 10}
    run = go(run={"rounds": 1, "transcript": "payloads"}, personalization=capped, encoding="float")
    sent = contributions(run, 1)
    assert set(sent.weights.values()) == {1.0}
    begun = flat(run, run._assembly.initial_weights)
    plain = np.mean([v[: len(begun)] for v in sent.values.values()], axis=0)
    np.testing.assert_allclose(flat(run, load_file(run.folder / "model.safetensors")) - begun, plain, atol=2e-7)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"use": "sgd", "lr": 0.5},
        {"use": "sgd", "lr": 0.7, "momentum": 0.9},
        {"use": "adam", "lr": 0.01, "betas": [0.8, 0.95], "epsilon": 0.01},
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_server_optimizers_follow_their_formulas(go, contributions, flat, optimizer):
    run = go(
        run={"rounds": 4, "transcript": "payloads"},
        encoding="float",
        training={"precision": "float64"},
        personalization={"use": "fedavg", "server_optimizer": optimizer},
    )
    x = flat(run, run._assembly.initial_weights)
    m, v = np.zeros_like(x), np.full_like(x, optimizer.get("epsilon", 0) ** 2)
    for round in range(1, 5):
        d = contributions(run, round).mean(len(x))
        if optimizer["use"] == "adam":  # Reddi et al. 2021, Algorithm 2, FedAdam: no bias correction, v starts at tau squared
            b1, b2 = optimizer["betas"]
            m, v = b1 * m + (1 - b1) * d, b2 * v + (1 - b2) * d**2
            x = x + optimizer["lr"] * m / (np.sqrt(v) + optimizer["epsilon"])
        else:
            m = optimizer.get("momentum", 0.0) * m + d
            x = x + optimizer["lr"] * m
    np.testing.assert_allclose(flat(run, load_file(run.folder / "model.safetensors")), x, rtol=1e-9, atol=1e-12)


BATCH_NORM = {"use": "tiny-net", "norm": "batch"}


def test_batch_norm_statistics_are_averaged_and_counters_stay(go, contributions, wire, flat):
    run = go(model=BATCH_NORM, run={"rounds": 2, "transcript": "payloads"}, encoding="float", training={"batch_size": 12})
    parts = run._assembly
    names = [t.name for t in parts.shared]
    assert names[-2:] == ["1.running_mean", "1.running_var"]
    begun = flat(run, parts.initial_weights)
    moved = flat(run, load_file(run.folder / "model.safetensors")) - begun
    expected = sum(contributions(run, r).mean(len(begun)) for r in (1, 2))
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert np.abs(expected[-16:]).max() > 0.01, "running statistics have moved"
    # No integer tensor ever went up or down, and none is declared.
    for up in (True, False):
        for message in wire(run, up=up):
            arrays = [a for part in (message.body, message.body.get("weights", {})) for a in part.values() if isinstance(a, np.ndarray)]
            assert all(a.dtype.kind == "f" for a in arrays)
    manifest = (run.folder / "manifest.json").read_text()
    assert "running_var" in manifest
    assert "num_batches_tracked" not in manifest
    assert load_file(run.folder / "model.safetensors")["1.num_batches_tracked"] == 0, "the server never counts"


def test_running_variances_never_become_negative(go):
    """Two bits a coordinate: an update of a variance may be decoded as minus its whole range."""
    run = go(
        model=BATCH_NORM, run={"rounds": 6}, encoding={"bits": 2, "range": {"*running_var": 3.0, "*": 0.01}}, training={"batch_size": 12}
    )
    variance = load_file(run.folder / "model.safetensors")["1.running_var"]
    assert bool((variance >= 0).all())
    assert bool((variance == 0).any()), "the clamp was needed in this run"
    assert all(v is not None for row in run.metrics for v in row.values())


def events(run, kind):
    return [e for line in (run.folder / "events.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == kind]


def test_training_metrics_are_weighted_means_and_saturation_is_counted(experiment, tmp_path, start):
    path, net = start
    training = {**ONE_STEP, "init": str(path)}
    run = experiment(run={"rounds": 1}, reporters=["jsonl"], training=training).run(tmp_path / "a", report=False)
    losses = [float(cross_entropy(net(x), y).detach()) for x, y in all_data(torch.float32)]
    (done,) = events(run, "round-finished")
    assert done["training"]["loss"] == pytest.approx(np.average(losses, weights=[24, 25, 26]), abs=3e-3)
    assert done["training"]["saturated"] == 0.0
    assert not events(run, "warning")

    tight = experiment(run={"rounds": 1}, reporters=["jsonl"], encoding={"range": 1e-4}, training=training).run(
        tmp_path / "b", report=False
    )
    (done,) = events(tight, "round-finished")
    assert 0.05 < done["training"]["saturated"] <= 1.0
    (warning,) = events(tight, "warning")
    assert "encoding.range" in warning["text"]


def test_no_local_step_leaves_the_model_as_it_is(go):
    run = go(run={"rounds": 2}, training={"epochs": 0})
    begun = run._assembly.initial_state
    got = load_file(run.folder / "model.safetensors")
    assert all(torch.equal(got[n], begun[n]) for n in begun)

"""Guards of the round and of a site that other tests pass by: each test turns red when its guard is taken out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.plain import PlainSession
from pppml_core.config import resolve
from pppml_core.errors import InconsistentModel
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.round import hold_session
from pppml_core.federation.site_host import SiteHost
from pppml_core.federation.store import SiteStore
from pppml_core.federation.trainer import Trainer
from pppml_core.interfaces.aggregation import ServerContext, Session, Sum
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.arrays import to_numpy
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.evaluation import predict_examples
from pppml_core.learning.predict import predict
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import ExchangeOutcome

COHORT = ("a", "b", "c")


class Short(Session):
    """A session whose sum is of another length than was planned."""

    def __init__(self, length):
        super().__init__(ValueSpec(4, "integer", 10), COHORT)
        self.length = length

    guarantees, fields = None, ()
    handle = exposed = None

    def coordinate(self, ctx):
        yield []
        return Sum(np.zeros(self.length, np.int64), ctx.cohort)


Short.__abstractmethods__ = frozenset()


@pytest.mark.parametrize("length", [3, 4, 5])
def test_a_sum_of_another_length_is_no_sum(length):
    config = SimpleNamespace(run=SimpleNamespace(min_cohort=1))
    privacy = SimpleNamespace(min_survivors=1)
    server = SimpleNamespace(parts=SimpleNamespace(config=config), privacy=privacy, perform=lambda *_: ExchangeOutcome({}, (), {}))
    ctx = ServerContext(b"r" * 16, 1, 1, COHORT, b"")
    if length == 4:
        assert hold_session(server, Short(length), "session", ctx).survivors == COHORT
        return
    with pytest.raises(InconsistentModel, match="length"):
        hold_session(server, Short(length), "session", ctx)


class VarianceToZero(FedAvg):
    """Every running variance (1 at first) falls by 1: what quantization adds may bring it below zero."""

    def local_update(self, model, data, gradients, state):
        update, state = super().local_update(model, data, gradients, state)
        for name, tensor in update.delta.items():
            if name.endswith("running_var"):
                tensor.fill_(-1.0)
        return update, state


def test_quantization_makes_no_variance_negative(go):
    run = go(
        model={"use": "tiny-net", "norm": "batch"},
        personalization=VarianceToZero(FedAvgConfig()),
        encoding={"bits": 8},
        run={"rounds": 1},
    )
    variance = run.model().state_dict()["1.running_var"]
    assert float(variance.min()) == 0.0, "not below, and the clamp was needed"
    assert float(variance.max()) > 0.0


@pytest.mark.parametrize("order", [("a", "b", "c"), ("a", "c", "b"), ("c", "a", "b")])
def test_floats_are_added_in_the_cohorts_order(order):
    """1e16 + 1 - 1e16 is 0 and 1e16 - 1e16 + 1 is 1: the order in which replies arrive must not show."""
    values = {"a": 1e16, "b": 1.0, "c": -1e16}
    session = PlainSession(ValueSpec(1, "real", None, "float64"), COHORT)
    coordinator = session.coordinate(ServerContext(b"r" * 16, 1, 1, COHORT, b""))
    exchange = next(coordinator)
    for site in order:
        exchange.fold(site, {"values": np.array([values[site]])})
    with pytest.raises(StopIteration) as stop:
        coordinator.send(SimpleNamespace(answered=order, lost={}))
    assert stop.value.value.total.tolist() == [0.0]


def test_a_delayed_site_does_not_change_a_sum_of_floats(go):
    same = {"encoding": "float", "training": {"precision": "float64"}}
    late = {"use": "local", "faults": [{"site": "site_1", "stage": "contribute", "do": "delay", "times": 9}]}
    assert go(**same, engine=late).result["model_sha256"] == go(**same).result["model_sha256"]


class Personal(FedAvg):
    """FedAvg with one local pass as adaptation; notes the optimizer state that it is handed."""

    personalizes = True

    def __init__(self):
        super().__init__(FedAvgConfig())
        self.trained, self.adapted = [], []

    def local_update(self, model, data, gradients, state):
        self.trained.append(data.optimizer_state is not None)
        return super().local_update(model, data, gradients, state)

    def adapt(self, model, data, gradients, state):
        self.adapted.append(data.optimizer_state is not None)
        data.train(model, gradients)
        return model


def test_adaptation_starts_with_a_fresh_optimizer(go):
    method = Personal()
    optimizer = {"use": "sgd", "lr": 0.05, "momentum": 0.9}
    go(task={"use": "tiny", "sites": 1}, personalization=method, training={"keep_optimizer": True, "optimizer": optimizer})
    assert method.trained == [False, True], "round 2 goes on with what was kept"
    assert len(method.adapted) >= 2
    assert not any(method.adapted)


def test_a_kept_contribution_without_its_state_is_made_again(registry, job, tmp_path):
    method = Personal()
    parts = Assembly.build(
        resolve({"task": "tiny", "personalization": {"use": "object"}}, registry=registry), registry, {"personalization": method}
    )
    host = SiteHost(job(parts))
    store = SiteStore(tmp_path / "site_2")
    store.folder.mkdir()
    trainer = Trainer(parts, "site_2", store, host.privacy, {})
    pipeline = parts.pipeline(1, tuple(1.0 for _ in parts.shared), 26, host.privacy)

    def contribution():
        return trainer.contribution(1, b"key", to_numpy(parts.initial_weights), pipeline, ())

    first = contribution()
    np.testing.assert_array_equal(contribution(), first)
    assert len(method.trained) == 1
    store.go_back_to(0)
    np.testing.assert_array_equal(contribution(), first)
    assert len(method.trained) == 2
    assert store.rounds() == [0, 1]


@pytest.mark.parametrize("size", [(8, 8), (13, 11), (8, 20), (6, 8)], ids=str)
def test_what_is_scored_is_what_is_shipped(size):
    """Images of the window's size, larger and smaller ones: the same probabilities, and not those of one constant window."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5, padding=2), torch.nn.Tanh(), torch.nn.Conv2d(4, 3, 5, padding=2))
    images = np.random.default_rng(0).normal(size=(5, 1, *size)).astype(np.float32)
    examples = ArrayExamples(images, np.zeros((5, *size), np.int64), np.arange(5), to_image=np.asarray)
    spec = TaskSpec("segmentation", 1, (8, 8), ("x", "y", "z"), "unet", "dice", {"dice": (0.0, 1.0)})
    scored = predict_examples(model, examples, spec.size).probabilities
    assert scored.dtype == np.float32
    np.testing.assert_array_equal(scored, np.stack(predict(model, spec, list(images))))
    with torch.no_grad():
        whole = torch.softmax(model(torch.from_numpy(images)), dim=1).numpy()
    assert np.array_equal(scored, whole) == (size == (8, 8))

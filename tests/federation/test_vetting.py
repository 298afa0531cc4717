"""What a site sees in the weights it is sent: nothing in honest ones, and what makes a model read images in those of a liar."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from pppml_core.config import resolve
from pppml_core.errors import PluginError
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.identity import load_roster, roster_hash
from pppml_core.federation.policy import Policy
from pppml_core.federation.site_host import SiteHost
from pppml_core.federation.terms import round_terms
from pppml_core.federation.vetting import suspicious
from pppml_core.interfaces.attack import Defence, Images, Knowledge, Training
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.arrays import parameters_and_buffers, to_numpy
from pppml_core.learning.losses import default_loss
from pppml_core.learning.metrics import CLASSIFICATION_METRICS, SEGMENTATION_METRICS
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode_message, encode_message, sha256_of
from pppml_core.wire.messages import SERVER, Message

SIZE = 32
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("tiny-net", {}),
    ("tiny-net", {"norm": "batch"}),
    ("small-cnn", {}),
    ("unet", {}),
    ("unet", {"norm": "batch"}),
    ("densenet", {}),
    ("densenet", {"norm": "group"}),
    ("dp-resnet9", {}),
    ("scale-resnet9", {}),
    ("linear-head", {"features": "small-cnn", "weights": "random"}),
    ("imprint-front", {"rows": 64}),
    ("imprint-front", {"rows": 64, "skip": False}),
]


def spec_of(use: str, channels: int = 3) -> TaskSpec:
    kind, metrics = ("segmentation", SEGMENTATION_METRICS) if use == "unet" else ("classification", CLASSIFICATION_METRICS)
    return TaskSpec(kind, channels, (SIZE, SIZE), ("a", "b"), use, next(iter(metrics)), metrics)


def built(use: str, args: dict[str, Any], seed: int, channels: int = 3) -> torch.nn.Module:
    try:
        component = Registry.discover().get("model", use)
        factory = component.load()(component.config(**args))
    except PluginError as error:
        pytest.skip(str(error))
    torch.manual_seed(seed)
    return factory.build(spec_of(use, channels))


def shared(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What of it travels, buffers too."""
    state = model.state_dict()
    return {t.name: to_numpy({"": state[t.name]})[""].copy() for t in parameters_and_buffers(model, lambda *_: True, share_buffers=True)}


def trained(model: torch.nn.Module, use: str, steps: int, rate: float = 0.05) -> torch.nn.Module:
    """Some steps of SGD with momentum and weight decay on bright bars that tell the class."""
    rng = np.random.default_rng(1)
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(chosen, lr=rate, momentum=0.9, weight_decay=5e-4)
    model.train()
    for _ in range(steps):
        classes = rng.integers(0, 2, 4)
        images = rng.normal(0.3, 0.3, (4, 3, SIZE, SIZE)).astype(np.float32)
        for image, label in zip(images, classes, strict=True):
            image[:, 4 + 8 * label : 8 + 8 * label] += 1
        targets = (images[:, 0] > 0.9).astype(np.int64) if use == "unet" else classes
        optimizer.zero_grad()
        default_loss(spec_of(use).kind, model(torch.from_numpy(images)), torch.from_numpy(targets)).backward()
        optimizer.step()
    return model


# -- honest weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("use", "args"), MODELS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())))
def test_no_alarm_on_fresh_and_trained_weights(use, args):
    """Fresh ones are held against those of another seed, which is more than a site does: it starts from the run's own."""
    heavy = use.endswith("resnet9")
    first = shared(built(use, args, 0))
    for seed in range(1 if heavy else 5):
        assert suspicious(shared(built(use, args, seed + 1)), first) == []
    assert suspicious(shared(trained(built(use, args, 0), use, 3 if heavy else 25)), first) == []


def test_no_alarm_after_long_training():
    for use, args in (("tiny-net", {}), ("imprint-front", {"rows": 64})):
        assert suspicious(shared(trained(built(use, args, 0), use, 150)), shared(built(use, args, 0))) == []


def test_what_the_initial_model_shows_is_no_finding():
    """A head of zeros, rows that are copies, a gigantic constant: where a network begins so, nobody planted it."""
    odd = {
        "head.weight": np.zeros((4, 50), np.float32),
        "copies.weight": np.tile(np.arange(10, dtype=np.float32), (20, 1)),
        "scale": np.full(3, 1e6, np.float32),
        "off.weight": np.full((3, 2), 1e-3, np.float32),
        "off.bias": np.full(3, -5.0, np.float32),
        "number": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    assert suspicious(odd, odd) == []
    assert suspicious(odd, {n: np.ones_like(a) + np.arange(a.size, dtype=np.float32).reshape(a.shape) for n, a in odd.items()}) != []


def test_running_statistics_are_as_large_as_images_are():
    model = built("tiny-net", {"norm": "batch"}, 0)
    weights = shared(model)
    changed = {**weights, "1.running_mean": weights["1.running_mean"] + 1e4, "1.running_var": weights["1.running_var"] * 1e6}
    assert suspicious(changed, weights) == []


# -- what a liar sends --------------------------------------------------------------------------------------------------------


def knowledge(model: torch.nn.Module, images: np.ndarray, spec: TaskSpec) -> Knowledge:
    unit = np.zeros((1, 1, 1), np.float32)
    public = Images(images, np.zeros(len(images), np.int64))
    return Knowledge("site_1", spec, lambda: model, torch.nn.functional.cross_entropy, Training(0.1), Defence(), unit, unit + 1, public)


def plant(weights: dict[str, np.ndarray], model: torch.nn.Module, spec: TaskSpec, **settings: Any) -> dict[str, np.ndarray]:
    """As the attack ``imprint`` does."""
    try:
        component = Registry.discover().get("attack", "imprint")
    except PluginError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    images = rng.random((60, 1, 1, 1)) + 0.1 * rng.normal(size=(60, spec.channels, *spec.size))
    attack = component.load()(component.config(**settings))
    return dict(attack.plant(weights, knowledge(model, images.astype(np.float32), spec)))


@pytest.mark.parametrize("settings", [{}, {"query": "random"}, {"bins": "normal", "scale": 1.0}], ids=["default", "random", "large"])
@pytest.mark.parametrize("rows", [16, 300])
def test_a_planted_layer(settings, rows):
    model = built("imprint-front", {"rows": rows}, 0, channels=1)
    weights = shared(model)
    found = suspicious(plant(weights, model, spec_of("imprint-front", 1), **settings), weights)
    assert f"front.weight has {rows} of {rows} rows in one direction, as a layer that sorts images into bins" in found
    assert any(said.startswith(f"back.weight has {rows} of {rows} columns in one direction") for said in found)
    assert {said.split()[0] for said in found} <= {"front.weight", "front.bias", "back.weight", "back.bias"}


def some(change: str) -> tuple[str, np.ndarray]:
    """A tensor of small-cnn (three classes more than two would be the same), changed: name, values."""
    rng = np.random.default_rng(0)
    head, third = rng.normal(0, 0.05, (2, 92)).astype(np.float32), rng.normal(0, 0.05, (92, 64, 3, 3)).astype(np.float32)
    if change == "zeroed":
        return "features.4.0.weight", np.zeros_like(third)
    if change == "nearly zeroed":
        return "features.4.0.weight", third * 1e-9
    if change == "mostly zeroed":
        third[: len(third) // 2] = 0
        return "features.4.0.weight", third
    if change == "norm zeroed":
        return "features.4.1.weight", np.zeros(92, np.float32)
    if change == "means":
        third[:50] = rng.random((50, 1, 1, 1)) + 0.1
        return "features.4.0.weight", third
    if change == "copies":
        third[10:40] = third[10] + 1e-4 * rng.normal(size=(30, 64, 3, 3))
        return "features.4.0.weight", third
    if change == "scaled copies":
        third[10:40] = third[10] * rng.random((30, 1, 1, 1))
        return "features.4.0.weight", third
    if change == "logits":
        return "head.weight", head * 1e4
    if change == "one logit":
        return "head.bias", np.array([0.01, 1e3], np.float32)
    if change == "off":
        return "features.4.1.bias", np.full(92, -50, np.float32)
    head[0, 3] = np.nan if change == "nan" else np.inf
    return "head.weight", head


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("zeroed", "is dead: 92 of 92 rows are zero"),
        ("nearly zeroed", "is dead"),
        ("mostly zeroed", "is dead: 46 of 92"),
        ("norm zeroed", "is dead"),
        ("means", "has 50 of 92 rows that take the mean"),
        ("copies", "has 30 of 92 rows in one direction"),
        ("scaled copies", "has 30 of 92 rows in one direction"),
        ("logits", "times as large as in the initial model"),
        ("one logit", "times as large as in the initial model"),
        ("off", "outweighs the weights of 92 of 92 rows"),
        ("nan", "holds NaN or infinity"),
        ("inf", "holds NaN or infinity"),
    ],
)
def test_one_changed_tensor(change, said):
    weights = shared(built("small-cnn", {}, 0))
    name, values = some(change)
    assert values.shape == weights[name].shape
    found = suspicious({**weights, name: values}, weights)
    assert any(said in sentence for sentence in found), found
    assert {sentence.split()[0] for sentence in found} == {name}


def test_changes_that_are_none():
    """As large as training makes them, or larger."""
    weights = shared(built("small-cnn", {}, 0))
    third, head = weights["features.4.0.weight"].copy(), weights["head.weight"]
    third[:20] = 0  # a fifth of the filters
    third[30:37] = third[30]  # seven copies
    changed = {"features.4.0.weight": third, "head.weight": head * 20, "head.bias": np.array([5.0, -5.0], np.float32)}
    changed["features.4.1.weight"] = weights["features.4.1.weight"] * 0.05
    changed["features.4.1.bias"] = np.full(92, -1.0, np.float32)
    assert suspicious({**weights, **changed}, weights) == []


@pytest.mark.parametrize(("alike", "found"), [(7, False), (8, True), (16, True), (32, True), (63, True), (256, True)])
@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_bins_in_a_part_of_a_layer(alike, found, noise):
    """Few bins read few images, and are as plain to see: 63 of 256 rows read 23 of a batch of 24."""
    rng = np.random.default_rng(0)
    begin = {"0.weight": rng.uniform(-1, 1, (256, 784)).astype(np.float32) / 28, "0.bias": np.zeros(256, np.float32)}
    planted = begin["0.weight"].copy()
    planted[:alike] = planted[0] * (1 + noise * rng.normal(size=(alike, 784)))
    said = suspicious({**begin, "0.weight": planted}, begin)
    bins = f"0.weight has {alike} of 256 rows in one direction, as a layer that sorts images into bins"
    assert said[:1] == ([bins] if found else [])


def test_narrow_filters_may_be_alike_but_no_copies():
    """Of nine numbers each, a quarter may blur alike."""
    rng = np.random.default_rng(0)
    begin = {"w": rng.normal(size=(256, 1, 3, 3)).astype(np.float32)}
    alike, copies = begin["w"].copy(), begin["w"].copy()
    alike[:30] = alike[0] * (1 + 2e-2 * rng.normal(size=(30, 1, 3, 3)))
    copies[:30] = copies[0]
    assert suspicious({"w": alike}, begin) == []
    assert suspicious({"w": copies}, begin) != []


def test_copies_in_many_blocks():
    """A wide layer is compared block by block; copies spread over all of it are found, and random rows are not."""
    rng = np.random.default_rng(0)
    begin = {"w": rng.normal(size=(1500, 40)).astype(np.float32)}
    planted = begin["w"].copy()
    planted[::3] = planted[0]
    assert suspicious(begin, begin) == []
    (said,) = suspicious({"w": planted}, begin)
    assert "500 of 1500 rows" in said


# -- a site that is sent them -------------------------------------------------------------------------------------------------


class Bench:
    """Two sites of one process on ``tiny`` with ``imprint-front``, and a server's half written by hand."""

    def __init__(self, job: Any) -> None:
        registry = Registry.discover()
        try:
            registry.get("model", "imprint-front")
        except PluginError as error:
            pytest.skip(str(error))
        self.parts = Assembly.build(resolve({"task": "tiny", "model": {"use": "imprint-front", "rows": 16}}, registry=registry), registry)
        self.host = SiteHost(job(self.parts))
        self.honest = to_numpy(self.parts.initial_weights)
        self.planted = plant(self.honest, self.parts.factory.build(self.parts.spec), self.parts.spec)

    def open(self, site: Any, weights: dict[str, np.ndarray], *, send: bool = True, round: int = 1) -> Message:
        cohort, ranges = list(self.host.job.sites), [1.0] * len(self.parts.shared)
        guarantees = self.parts.aggregator.plan(self.parts.pipeline(1, tuple(ranges), 26, self.host.privacy).spec, cohort).guarantees
        terms = round_terms(
            round=round, cohort=cohort, ranges=ranges, max_weight=26, guarantees=guarantees, keep=[],
            roster=roster_hash(load_roster(self.host.job.home(site.name)), (*cohort, SERVER)),
            privacy=self.host.privacy.statement, metrics=self.parts.config.run.metrics,
        )  # fmt: skip
        return self.ask(site, "open", {"terms": terms, "sha256": sha256_of(weights), **({"weights": weights} if send else {})}, round)

    def evaluate(self, site: Any, weights: dict[str, np.ndarray]) -> Message:
        asked = {"sha256": sha256_of(weights), "weights": weights, "splits": ["validation"], "state": 0, "final": False}
        return self.ask(site, "evaluate", asked, 1)

    def ask(self, site: Any, kind: str, body: dict[str, Any], round: int) -> Message:
        return decode_message(site.receive(encode_message(Message(self.host.job.run, round, 1, kind, kind, SERVER, site.name, body))))


@pytest.fixture
def bench(job):
    return Bench(job)


def test_a_site_refuses_a_planted_model(bench):
    site = bench.host.site("site_1")
    reply = bench.open(site, bench.planted)
    assert reply.kind == "refused"
    assert re.match(r"site_1: vet_weights: (front|back)\.weight has \d+ of \d+ rows in one direction", reply.body["reason"])
    assert "(and " in reply.body["reason"]
    contributed = bench.ask(site, "session", {}, 1)
    assert contributed.kind == "failed", "no attempt is open"
    assert bench.evaluate(site, bench.planted).kind == "refused"
    # An honest model of the same architecture is taken, also after it.
    assert bench.open(site, bench.honest).body == {"needs_weights": False}
    assert bench.evaluate(site, bench.honest).kind == "reply"


def test_a_site_whose_policy_does_not_look_takes_it(bench):
    site = bench.host.site("site_1", Policy(vet_weights=False))
    assert bench.open(site, bench.planted).body == {"needs_weights": False}
    assert bench.evaluate(site, bench.planted).kind == "reply"


def test_what_another_site_of_the_process_took_in_is_looked_at(bench):
    careless, careful = bench.host.site("site_1", Policy(vet_weights=False)), bench.host.site("site_2")
    assert bench.open(careless, bench.planted).body == {"needs_weights": False}
    assert bench.open(careful, bench.planted, send=False).kind == "refused"
    assert bench.open(careful, bench.honest).body == {"needs_weights": False}


def test_a_model_is_looked_at_once(bench, monkeypatch):
    seen = []
    monkeypatch.setattr("pppml_core.federation.site_host.suspicious", lambda weights, initial: seen.append(weights) or [])
    for name in ("site_1", "site_2"):
        site = bench.host.site(name)
        bench.open(site, bench.honest)
        bench.evaluate(site, bench.honest)
    assert len(seen) == 1
    bench.evaluate(bench.host.site("site_1"), bench.planted)
    assert len(seen) == 2


def test_an_honest_run_with_such_a_front(go):
    registry = Registry.discover()
    try:
        registry.get("model", "imprint-front")
    except PluginError as error:
        pytest.skip(str(error))
    run = go(only=registry, model={"use": "imprint-front", "rows": 16})
    assert run.result["rounds"] == 2

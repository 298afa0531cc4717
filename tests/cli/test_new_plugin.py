"""`pppml new-plugin` writes folders that work: each is imported, its hook is called, and its component does its work."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pppml_core.cli.new_plugin import command, kinds, write_plugin
from pppml_core.component import KINDS, Component
from pppml_core.errors import ConfigError
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import ExchangeOutcome, Message

Maker = Callable[[str], Component]


@pytest.fixture
def component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    """Write a plugin of a kind, import it, and return what its hook describes."""

    def make(kind: str) -> Component:
        folder = write_plugin(f"fresh-{kind}", kind, tmp_path)
        monkeypatch.syspath_prepend(str(folder / "src"))
        declared = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        (module,) = declared["entry-points"]["pppml"].values()
        hooks = import_module(module)
        (described,) = getattr(hooks, KINDS[kind])()
        assert described.name == f"fresh-{kind}"
        return described

    yield make
    for name in [name for name in sys.modules if name.startswith("pppml_fresh_")]:
        del sys.modules[name]


def build(component: Component, **settings: Any) -> Any:
    return component.load()(component.config(**settings))


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_is_described_by_its_own_hook(kind: str, component: Maker) -> None:
    described = component(kind)
    assert not described.missing()
    assert type(build(described)).__name__ == f"Fresh{kind.capitalize()}"
    for name, field in described.config.model_fields.items():
        assert field.description, name


def test_an_aggregator_sums_and_counts_its_survivors(component: Maker) -> None:
    cohort = ("a", "b", "c")
    session = build(component("aggregator"), min_survivors=2).plan(ValueSpec(4, "integer", 100), cohort)
    values = {site: np.arange(4, dtype=np.int32) * (i + 1) for i, site in enumerate(cohort)}
    coordinator = session.coordinate(SimpleNamespace(cohort=cohort))
    exchange = next(coordinator)
    for site in ("a", "c"):
        message = Message(b"r" * 16, 1, 1, "session", exchange.stage, "server", site)
        _, reply = session.handle({}, message, SimpleNamespace(contribution=lambda v=values[site]: v))
        assert set(reply) == {field.name for field in session.fields}
        exchange.fold(site, reply)
    with pytest.raises(StopIteration) as done:
        coordinator.send(ExchangeOutcome({}, ("a", "c"), {"b": "lost"}))
    np.testing.assert_array_equal(done.value.value.total, values["a"] + values["c"])
    assert done.value.value.survivors == ("a", "c")


def test_a_personalization_keeps_its_local_layers(component: Maker) -> None:
    torch = pytest.importorskip("torch")
    rule = build(component("personalization"), local=("1.",))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))

    def train(model: Any, gradients: Any) -> dict[str, float]:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
        return {"loss": 0.5}

    update, _ = rule.local_update(model, SimpleNamespace(train=train), None, {})
    assert {name: float(tensor.mean()) for name, tensor in update.delta.items()} == {"0.weight": 1.0, "0.bias": 1.0}
    weights, _ = rule.server_update({"w": torch.ones(2)}, {"w": torch.full((2,), 0.5)}, {})
    assert weights["w"].tolist() == [1.5, 1.5]


def test_a_task_gives_the_examples_it_declares(component: Maker) -> None:
    task = build(component("task"), sites=2, examples=8)
    spec = task.spec()
    for site in task.sites():
        data = task.load(site.slug)
        image, target = data.train.example(0)
        assert (len(data.train), len(data.validation), len(data.test)) == (8, 4, 4)
        assert image.shape == (spec.channels, *spec.size)
        assert image.dtype == np.float32
        assert int(target) in range(len(spec.classes))
        assert not set(data.train.groups) & set(data.test.groups)
        np.testing.assert_array_equal(image, task.load(site.slug).train.example(0)[0])


@pytest.mark.parametrize(("kind", "size"), [("classification", (12, 12)), ("segmentation", (12, 12)), ("classification", (8, 8, 8))])
def test_a_model_fits_the_task(kind: str, size: tuple[int, ...], component: Maker) -> None:
    torch = pytest.importorskip("torch")
    spec = SimpleNamespace(kind=kind, channels=1, size=size, classes=("a", "b", "c"))
    logits = build(component("model"))
    assert logits.misfits(spec) == []
    assert logits.build(spec)(torch.zeros(2, 1, *size)).shape == ((2, 3, *size) if kind == "segmentation" else (2, 3))


def test_a_reporter_writes_a_line_for_each_round(component: Maker, tmp_path: Path) -> None:
    reporter = build(component("reporter"))
    reporter.open(tmp_path / "run")
    for event in (
        {"event": "round-started"},
        {"event": "round-finished", "round": 1, "seconds": 2.0, "survivors": ["a"]},
        {"event": "new"},
    ):
        reporter.handle(event)
    reporter.close()
    reporter.close()
    assert (tmp_path / "run" / "rounds.txt").read_text() == "round 1: 2.0 s, 1 sites\n"


def test_a_privacy_mechanism_clips_and_claims_nothing(component: Maker) -> None:
    plan = build(component("privacy"), clip=1.0).plan(None)
    assert np.linalg.norm(plan.constrain(np.full(100, 3.0, np.float32))) == pytest.approx(1.0, rel=1e-6)
    assert plan.statement.epsilon is None


def test_an_attack_reads_exposures(component: Maker) -> None:
    view = [SimpleNamespace(sites=(s,), value=np.full(4, v)) for s, v in (("a", 1), ("b", 5))]
    assert build(component("attack")).run(view, 1.0, None).guess == {"b": 10.0}


@pytest.mark.parametrize(
    ("name", "kind", "place", "hint"),
    [("My Sum", "aggregator", "NAME", "my-sum"), ("7up", "task", "NAME", "up"), ("my-sum", "agregator", "--kind", "aggregator")],
)
def test_what_cannot_be_written_is_refused_with_a_hint(name: str, kind: str, place: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        write_plugin(name, kind, tmp_path)
    assert refused.value.place == place
    assert hint in (refused.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_plugin("my-sum", "aggregator", tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        write_plugin("pppml-my-sum", "task", tmp_path)


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["my-sum", "--kind", "aggregator", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"pip install -e {tmp_path / 'my_sum'}" in result.output

"""Whole runs: what goes over the wire, what the plan says, which models there are."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pppml_core.errors import ConfigError
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import SERVER
from pppml_core.wire.transcript import read_payload, read_transcript

#: what stays at the site, of the tiny network with batch normalization.
NORM = {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
HEAD = {"7.weight", "7.bias"}
STAYS = {
    "fedavg-finetune": set(),
    "fedprox": set(),
    "fedbn": NORM,
    "ditto": set(),
    "fedper": HEAD,
    "fedrep": HEAD,
    "apfl": set(),
}
COUNTER = "1.num_batches_tracked"
#: not looked at: the counter never leaves anyway, and the bias below the batch normalization has next to no gradient.
IDLE = {COUNTER, "0.bias"}


@pytest.fixture(scope="module", params=list(STAYS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Each method's run, once."""
    held = {}

    def get(experiment, name, **sections):
        key = json.dumps([name, sections], sort_keys=True)
        if key not in held:
            held[key] = experiment(name, **sections).run(tmp_path_factory.mktemp("run") / "r", reporters=False, report=False)
        return held[key]

    return get


def arrays(value):
    """Every array inside a message's body."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [a for item in value for a in arrays(item)]
    return [value] if isinstance(value, np.ndarray) else []


def test_a_run(experiment, finished, name):
    run = finished(experiment, name)
    kinds = {row["weights"] for row in run.metrics}
    complete = name not in ("fedbn", "fedper", "fedrep")
    assert kinds == ({"global"} if complete else set()) | ({"personalized"} if name != "fedprox" else set())
    key = "global" if name == "fedprox" else "personalized"
    assert run.result["metrics"][key]["mean"]["accuracy"] > 0.5
    own = [run.model(site=f"site_{i}").state_dict() for i in (1, 2)]
    differ = {n for n in own[0] if not torch.equal(own[0][n], own[1][n])} - IDLE
    if name in ("fedbn", "fedper", "fedrep"):
        assert differ == STAYS[name], "the rest is one and the same"
        with pytest.raises(ConfigError, match="keeps a part of the model"):
            run.model()
    else:
        assert differ == (set() if name == "fedprox" else set(own[0]) - IDLE)


def test_personal_parts_never_leave(experiment, finished, name):
    run = finished(experiment, name)
    everything = {n for n in run.model(site="site_1").state_dict() if n != COUNTER}
    declared = {row["name"]: row["shape"] for row in json.loads((run.folder / "manifest.json").read_text())["contribution"]}
    assert {n for n in declared if not n.startswith("#")} & everything == everything - STAYS[name]
    assert COUNTER not in declared
    length = sum(int(np.prod(shape)) for shape in declared.values())
    sent = [h for h in read_transcript(run.folder) if h.sender != SERVER]
    assert sent
    seen = [a for h in sent for a in arrays(decode_message(read_payload(run.folder, h.sha256)).body)]
    assert sum(a.shape == (length,) for a in seen) == 6, "three sites, two rounds"
    assert max(a.size for a in seen) == length
    # The values themselves: a personal tensor's bytes, as float32 or float64, are in no message of either direction.
    payloads = [bytes(read_payload(run.folder, h.sha256)) for h in read_transcript(run.folder)]
    for site in ("site_1", "site_2", "site_3"):
        own = load_file(run.folder / "sites" / site / "personalized.safetensors")
        for tensor in (own[n].numpy() for n in (STAYS[name] or ({"7.weight"} if name in ("ditto", "apfl") else ()))):
            for bits in (tensor.astype(np.float32).tobytes(), tensor.astype(np.float64).tobytes()):
                assert not any(bits in p for p in payloads)


def test_the_shared_model_is_fedavgs_where_the_method_only_adds_to_it(experiment, finished):
    expected = finished(experiment, "fedavg").result["model_sha256"]
    for name in ("fedavg-finetune", "ditto", "apfl"):
        assert finished(experiment, name).result["model_sha256"] == expected, name
    assert finished(experiment, "fedprox").result["model_sha256"] != expected


def test_evaluating_in_between_changes_nothing(experiment, finished, name, tmp_path):
    whole = finished(experiment, name)
    again = experiment(name, run={"evaluate_every": 2}).run(tmp_path / "r", reporters=False, report=False)
    for site in ("site_1", "site_2", "site_3"):
        one, other = (load_file(r.folder / "sites" / site / "personalized.safetensors") for r in (whole, again))
        assert all(torch.equal(one[n], other[n]) for n in one)


def test_a_new_site(experiment, finished, name):
    run = finished(experiment, name, task={"use": "tiny", "leave_out": ["site_3"]})
    few, again, more = run.adapt("site_3", examples=9), run.adapt("site_3", examples=9), run.adapt("site_3")
    held = [n.state_dict() for n in (few, again, more)]
    assert all(torch.equal(held[0][n], held[1][n]) for n in held[0])
    shared = load_file(run.folder / "model.safetensors")
    fixed = {n for n in shared if torch.equal(shared[n], held[0][n])} - IDLE
    everything = set(held[0]) - IDLE
    own = {"fedprox": set(), "fedbn": NORM, "fedper": HEAD, "fedrep": HEAD}.get(name, everything)
    assert fixed == everything - own
    assert name == "fedprox" or any(not torch.equal(held[0][n], held[2][n]) for n in own), "more examples, another model"


def test_a_site_that_was_never_drawn_makes_its_own_part_when_it_is_scored(experiment, finished, name):
    run = finished(experiment, name, run={"rounds": 1, "cohort": 1})
    assert {row["site"] for row in run.metrics if row["split"] == "test"} == {"site_1", "site_2", "site_3"}
    own = [run.model(site=f"site_{i}").state_dict() for i in (1, 2, 3)]
    for part in STAYS[name] - {"1.running_var"}:
        assert not torch.equal(own[0][part], own[1][part])
        assert not torch.equal(own[1][part], own[2][part])


@pytest.mark.parametrize(
    ("model", "kind", "size", "personal"),
    [
        ({"use": "unet", "norm": "batch"}, "segmentation", 16, ["model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"]),
        ({"use": "densenet"}, "classification", 28, ["class_layers.out.weight", "class_layers.out.bias"]),
        ({"use": "small-cnn"}, "classification", 8, ["head.weight", "head.bias"]),
    ],
    ids=["unet", "densenet", "small-cnn"],
)
def test_heads_of_the_installed_networks(experiment, model, kind, size, personal):
    from pppml_core.registry import Registry

    if not any(row.kind == "model" and row.name == model["use"] and row.status == "ok" for row in Registry.discover().rows()):
        pytest.skip(f"{model['use']} is not installed")
    task = {"use": "tiny", "kind": kind, "size": size}
    plan = experiment("fedrep", task=task, model=model).plan().plan
    assert plan.misfits == []
    declared = {row["name"] for row in plan.manifest["contribution"]}
    assert declared.isdisjoint(personal)
    assert len(declared) > 10


def test_the_plan_refuses_in_words(experiment):
    plan = experiment({"use": "fedper", "head": ["7.wieght"]}).plan().to_dict()
    assert plan["misfits"] == ["personalization.head: '7.wieght' matches no parameter of the network; did you mean '7.weight'?"]
    plan = experiment("fedbn", model={"use": "tiny-net", "norm": "group"}).plan().to_dict()
    assert len(plan["misfits"]) == 1
    assert plan["misfits"][0].startswith("personalization.layers: the network has no batch normalization")
    plan = experiment({"use": "ditto", "personal_epochs": 2}, training={"steps": 3}).plan().to_dict()
    assert plan["misfits"] == [
        "personalization.personal_epochs: beside training.steps it has no bound for each step; give personal_steps or training.epochs"
    ]

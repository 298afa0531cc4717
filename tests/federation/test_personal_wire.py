"""What is personal never leaves a site: it is looked for, by name and by value, in the bytes of every message and of the server's files."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.torch import load_file

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode
from pppml_core.wire.transcript import read_payload, read_transcript

SITES = ("site_1", "site_2", "site_3")
INSTALLED = Registry.discover()
STATISTICS = {"1.running_mean", "1.running_var"}
HEAD = {"7.weight", "7.bias"}
#: parameters and floating buffers of the tiny network with BatchNorm.
ALL = {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias", *STATISTICS, *HEAD}


class OwnHead(FedAvg):
    """The head stays at the site, and so does a number made from it."""

    personalizes = True
    shares_one_gradient = False
    has_global_model = False

    def __init__(self):
        super().__init__(FedAvgConfig())

    def shared(self, name, model):
        return name not in HEAD

    def local_update(self, model, data, gradients, state):
        update, _ = super().local_update(model, data, gradients, state)
        return update, {"secret": float(model.state_dict()["7.bias"].sum())}


#: method -> what it shares.
SHARED = {
    "own head": (OwnHead(), ALL - HEAD),
    "fedper": ("fedper", ALL - HEAD),
    "fedrep": ("fedrep", ALL - HEAD),
    "fedbn": ("fedbn", ALL - STATISTICS - {"1.weight", "1.bias"}),
    "per-fedavg, local statistics": ({"use": "per-fedavg", "batch_norm": "local"}, ALL - STATISTICS),
    "ditto": ("ditto", ALL),
    "apfl": ("apfl", ALL),
    "local-only": ("local-only", set()),
}


@pytest.fixture(scope="module", params=SHARED)
def run(request, go):
    """Two rounds of a method, all payloads kept, contributions as plain floats; and what it shares."""
    method, shared = SHARED[request.param]
    name = method if isinstance(method, str) else method["use"] if isinstance(method, dict) else None
    if name is not None and name not in {c.name for c in INSTALLED.components("personalization") if not c.missing()}:
        pytest.skip(f"{name} is not installed")
    sections = {"model": {"use": "tiny-net", "norm": "batch"}, "run": {"transcript": "payloads"}, "encoding": "float", "only": INSTALLED}
    return go(personalization=method, training={"batch_size": 6}, **sections), shared


def payloads(run):
    return [read_payload(run.folder, hop.sha256) for hop in read_transcript(run.folder)]


def kept_by_the_server(run):
    elsewhere = {*SITES, "payloads"}
    return [p.read_bytes() for p in run.folder.rglob("*") if p.is_file() and not elsewhere & set(p.relative_to(run.folder).parts)]


def personal(run, shared):
    """Trained values that are a site's own: arrays and numbers of its states, and what its own model has besides shared values."""
    arrays, numbers = [], []

    def walk(value):
        if isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, np.ndarray):
            arrays.append(value)
        elif isinstance(value, float):
            numbers.append(value)

    for site in SITES:
        folder = run.folder / "sites" / site
        for path in sorted(folder.glob("state-*")):
            state = decode(path.read_bytes())
            walk({"personal": dict(state["personal"]), "method": state["method"]})
        arrays += [t.numpy() for n, t in load_file(folder / "personalized.safetensors").items() if n not in shared]
    return arrays, numbers


def windows(arrays, but=()):
    """16 bytes, four numbers that are all different and not the initial ones, of several places of each array."""
    out = set()
    for array in arrays:
        flat = np.ascontiguousarray(array).ravel()
        if flat.dtype != np.float32 or len(flat) < 3:
            continue
        size = min(4, len(flat))
        for at in np.unique(np.linspace(0, len(flat) - size, 8).astype(int)):
            four = flat[at : at + size]
            if len(np.unique(four)) == size and 0 not in four:
                out.add(four.tobytes())
    return out - set(but)


def test_no_personal_name_is_in_any_message(run):
    run, shared = run
    everything = b"".join(payloads(run))
    for name in {*ALL - shared, "1.num_batches_tracked"}:
        assert name.encode() not in everything, name
    for name in shared:
        assert name.encode() in everything, "the control: names of what is shared are there"


def test_no_personal_value_is_in_any_message_or_at_the_server(run):
    run, shared = run
    arrays, numbers = personal(run, shared)
    initial = windows([t.numpy() for t in run._assembly.initial_state.values()])
    own = windows(arrays, but=initial)
    assert len(own) >= 20, "there is something to look for"
    for where in (payloads(run), kept_by_the_server(run)):
        everything = b"".join(where)
        assert not [w for w in own if w in everything]
        for number in numbers:
            if len(repr(number)) > 10:  # no setting, but something learned
                assert struct.pack("<d", number) not in everything
                assert struct.pack("<f", number) not in everything
                assert repr(number).encode() not in everything
        if shared:
            sent = windows([t.numpy() for n, t in load_file(run.folder / "model.safetensors").items() if n in shared])
            assert [w for w in sent if w in everything], "the control: shared weights are found"
    assert any(len(repr(n)) > 10 for n in numbers) == (run._assembly.config.personalization.use in ("object", "apfl"))


def test_what_is_broadcast_and_contributed_is_what_is_shared(run, wire):
    run, shared = run
    parts = run._assembly
    assert {t.name for t in parts.shared} == shared
    sent = [m.body["weights"] for m in wire(run, up=False) if "weights" in m.body]
    assert sent
    assert all(set(weights) == shared for weights in sent)
    manifest = json.loads((run.folder / "manifest.json").read_text())
    declared = {row["name"]: tuple(row["shape"]) for row in manifest["contribution"]}
    if not shared:
        assert declared == {}
        assert {m.stage for m in wire(run)} == {"open", "train", "evaluate"}
        assert {name for m in wire(run) for name in m.body} == {"needs_weights", "done", "scores"}
        return
    numbers = {"#weight", "#loss", "#loss_defined", "#saturated"}
    assert set(declared) == shared | numbers
    assert {n: s for n, s in declared.items() if n in shared} == {n: tuple(parts.initial_state[n].shape) for n in shared}
    length = sum(int(np.prod(shape)) for shape in declared.values())
    contributed = [m.body for m in wire(run, "contribute")]
    assert len(contributed) == 6
    assert all(set(body) == {"values"} and body["values"].shape == (length,) for body in contributed)


def test_each_site_has_its_own(run):
    """The other half: what is not shared differs from site to site, and what is shared does not."""
    run, shared = run
    states = {s: decode((run.folder / "sites" / s / "state-000002").read_bytes())["personal"] for s in SITES}
    for state in states.values():
        assert set(state) == (ALL - shared) | {"1.num_batches_tracked"}
    for name in ALL - shared - {"0.bias"}:  # (a bias before normalization gets no gradient)
        assert not np.array_equal(states["site_1"][name], states["site_2"][name])

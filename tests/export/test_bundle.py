"""A MONAI bundle of a run gives what the run gives, without pppml; what it says is true; what cannot be told is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import pppml_core as pppml
from pppml_core import cli
from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.errors import CheckpointError, ConfigError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.learning.bundle import network
from pppml_core.learning.bundle.readings import as_stored
from pppml_core.testing.bundle_alone import predict_alone


class Residual(torch.nn.Module):
    """A network of somebody's own, of which MONAI knows nothing."""

    def __init__(self, spec):
        super().__init__()
        self.first = torch.nn.Conv2d(spec.channels, 4, 3, padding=1)
        self.last = torch.nn.Conv2d(4, len(spec.classes), 1)

    def forward(self, images):
        hidden = torch.relu(self.first(images)) + torch.ones(1, device=images.device)
        return self.last(hidden + hidden.square())


class Tuned(FedAvg):
    """Every site shifts the shared weights a little."""

    personalizes = True

    def __init__(self):
        super().__init__(FedAvgConfig())

    def adapt(self, model, data, gradients, state):
        with torch.no_grad():
            next(model.parameters()).add_(0.1)
        return model


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(folder, kind="segmentation", **sections):
    task = {"use": "tiny", "kind": kind, "size": 16, "examples": 6, "sites": 2, **sections.pop("task", {})}
    return pppml.Experiment(task=task, run={"rounds": 1, **sections.pop("run", {})}, reporters=[], **sections).run(folder, report=False)


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("segmentation") / "run", personalization={"use": "local-only"})


@pytest.fixture(scope="module")
def classification(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("classification") / "run", "classification")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Grey, colour and 16-bit pictures, of the training size, larger and smaller."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, shape, dtype in (
        ("same", (16, 16), np.uint8),
        ("larger", (20, 37), np.uint8),
        ("smaller", (9, 30), np.uint8),
        ("deep", (18, 16), np.uint16),
        ("colour", (16, 21, 3), np.uint8),
    ):
        Image.fromarray(draw.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)).save(folder / f"{name}.png")
    return folder


def close(run, bundle, folder, site=None, **how):
    """Probabilities with pppml and without are the same numbers; returns pppml's result."""
    result = run.predict(folder, site=site, out=bundle.parent / f"{bundle.name}-predicted")
    alone = predict_alone(bundle, folder, **how)
    assert set(alone) == set(result.names)
    for name, expected in zip(result.names, result.probabilities, strict=True):
        assert alone[name].shape == expected.shape, name
        np.testing.assert_allclose(alone[name], expected, atol=2e-6, err_msg=name)
    return result


def test_segmentation_without_pppml(segmentation, pictures, tmp_path):
    pytest.importorskip("ignite")
    pytest.importorskip("fire")
    bundle = segmentation.export_bundle(tmp_path / "bundle", "site_2")
    result = close(segmentation, bundle, pictures, "site_2", workflow=True)
    assert len({p.shape for p in result.probabilities}) == 5
    for name, mask in zip(result.names, result.masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(bundle / "eval" / f"{name}_mask.png")), mask, err_msg=name)


def test_classification_without_pppml(classification, pictures, tmp_path):
    pytest.importorskip("ignite")
    pytest.importorskip("fire")
    bundle = classification.export_bundle(tmp_path / "bundle")
    result = close(classification, bundle, pictures, workflow=True)
    with open(bundle / "eval" / "predictions.csv", newline="") as file:
        rows = {Path(row[0]).stem: [float(value) for value in row[1:]] for row in csv.reader(file)}
    for name, expected in zip(result.names, result.probabilities, strict=True):
        assert rows[name] == pytest.approx(expected.tolist(), abs=2e-6)


def test_volumes_go_through_a_flat_network_slice_by_slice_and_an_own_network_as_torchscript(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    draw, folder = np.random.default_rng(1), tmp_path / "volumes"
    folder.mkdir()
    for name, shape in (("volume", (20, 16, 3)), ("single", (17, 18))):
        nibabel.save(nibabel.Nifti1Image(draw.normal(0, 1, shape).astype(np.float32), np.diag([2, 2, 5, 1.0])), folder / f"{name}.nii.gz")
    run = trained(tmp_path / "run", model=Residual)
    bundle = run.export_bundle(tmp_path / "bundle")
    script = (bundle / "models" / "model.ts").read_bytes()
    assert not [word for word in (b"site-packages", str(Path(__file__).parent).encode()) if word in script]
    # (where it was traced: tensors that a forward makes are made there)
    assert json.loads((bundle / "configs/inference.json").read_text())["device"] == "$torch.device('cpu')"
    alone = predict_alone(bundle, folder, ["inference.json", "nifti.json"])
    result = run.predict(folder)
    for name, expected in zip(result.names, result.probabilities, strict=True):
        np.testing.assert_allclose(alone[name].reshape(expected.shape), expected, atol=2e-6, err_msg=name)


def test_monai_loads_the_network_by_name_and_checks_its_shapes(segmentation, tmp_path):
    from monai.bundle import load, verify_net_in_out

    bundle = segmentation.export_bundle(tmp_path / "bundle", "site_1")
    expected = segmentation.model("site_1")
    loaded = load("bundle", bundle_dir=tmp_path, workflow_type="inference", device="cpu")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert set(state) == set(expected.state_dict()) == set(loaded.state_dict())
    assert type(state) is dict
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    verify_net_in_out("network_def", str(bundle / "configs/metadata.json"), str(bundle / "configs/inference.json"), device="cpu")


#: What schema 2024-07-25 of MONAI's bundles requires, with the type of each.
REQUIRED = {
    **dict.fromkeys(["schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description"], str),
    **dict.fromkeys(["authors", "copyright", "data_source", "data_type", "intended_use", "image_classes", "pred_classes"], str),
    **dict.fromkeys(["required_packages_version", "network_data_format", "changelog", "eval_metrics"], dict),
    "references": list,
}
TENSOR = {"type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list, "is_patch_data": bool}


def test_metadata_fits_the_schema_and_tells_the_run(classification, segmentation, tmp_path):
    for run, site, scored, patch in (
        (classification, None, "global", False),
        (classification, "site_1", "global", False),  # fedavg: a site's model is the global one
        (segmentation, "site_1", "personalized", True),
    ):
        bundle = run.export_bundle(tmp_path / f"{scored}-{site}", site)
        meta = json.loads((bundle / "configs/metadata.json").read_text())
        assert {name: type(meta.get(name)) for name in REQUIRED} == REQUIRED
        for side, channels in (("inputs", 1), ("outputs", len(run.task.spec().classes))):
            (tensor,) = meta["network_data_format"][side].values()
            assert {name: type(tensor.get(name)) for name in TENSOR} == TENSOR
            assert tensor["num_channels"] == channels == len(tensor["channel_def"])
            assert tensor["is_patch_data"] is patch
        assert meta["monai_version"] == run.result["versions"]["monai"]
        table = run.result["metrics"][scored]
        found = table["mean"] if site is None else table["sites"][site]
        # (a distance that is undefined has no place in JSON)
        assert meta["eval_metrics"] == {k: v for k, v in found.items() if v is not None and math.isfinite(v)} != {}
        assert "research" in meta["intended_use"]
        assert meta["authors"].startswith("not stated")
        assert meta["copyright"].startswith("not stated")
        text = (bundle / "docs/README.md").read_text()
        assert ("site site_1" in text) == (site is not None)
        assert "without a differential privacy guarantee" in text


def told(run, out, site=None):
    """All that a bundle says of its origin."""
    bundle = run.export_bundle(out, site)
    meta = json.loads((bundle / "configs/metadata.json").read_text())
    return f"{meta['name']}\n{meta['description']}\n{(bundle / 'docs/README.md').read_text()}", meta


ONE_SITES = "fitted to one site's patients"


def test_it_says_whose_weights_they_are_and_how_they_were_trained(classification, segmentation, tmp_path):
    shared, _ = told(classification, tmp_path / "shared", "site_1")
    assert "the global model, which is also that of site site_1" in shared
    assert "trained by federated learning" in shared
    assert ONE_SITES not in shared
    assert "personalized model" not in shared

    tuned, _ = told(trained(tmp_path / "tuned-run", "classification", personalization=Tuned()), tmp_path / "tuned", "site_1")
    assert "the personalized model of site site_1" in tuned
    assert ONE_SITES in tuned

    alone, _ = told(segmentation, tmp_path / "alone", "site_1")
    assert "the model of site site_1" in alone
    assert "trained by one site alone" in alone
    assert ONE_SITES in alone
    assert not [word for word in ("federated", "personalized", "over plain") if word in alone]

    run = trained(tmp_path / "pooled-run", "classification", task={"pool": True})
    for site in (None, "pool"):
        pooled, meta = told(run, tmp_path / f"pooled-{site}", site)
        assert "trained on the data of all sites at one place" in pooled
        assert "the model of all sites' pooled data" in pooled
        assert not [word for word in ("federated", "global model", "over plain", "of that site", ONE_SITES) if word in pooled]
        assert meta["eval_metrics"] == run.result["metrics"]["global"]["mean"]


def test_it_names_the_round_whose_weights_were_chosen(classification, tmp_path):
    assert "1 round of fedavg over plain." in told(classification, tmp_path / "last")[0]
    folder = tmp_path / "chosen-run"
    shutil.copytree(classification.folder, folder)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "rounds": 8, "selected_round": 7}))
    text = "8 rounds of fedavg over plain; the weights are of round 7, chosen on validation data."
    assert told(pppml.open(folder), tmp_path / "chosen")[0].count(text) == 2


def test_a_bundle_is_the_same_each_time_and_names_no_path_of_this_machine(classification, tmp_path):
    one, two = (classification.export_bundle(tmp_path / name) for name in ("one", "two"))
    files = {str(p.relative_to(one)): p.read_bytes() for p in sorted(one.rglob("*")) if p.is_file()}
    assert files == {str(p.relative_to(two)): p.read_bytes() for p in sorted(two.rglob("*")) if p.is_file()}
    assert {"LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md"} <= set(files)
    assert {"docs/data_card.md", "docs/data_card.json"} <= set(files)
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name
        assert str(Path(pppml.__file__).parents[1]).encode() not in content, name
        assert not name.endswith(".json") or b"pppml_" not in content, name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]  # nothing half made is left


def test_the_data_card_tells_names_of_files_but_no_folder(classification, tmp_path, monkeypatch):
    card = classification.task.card()
    changed = type(card)(**{**vars(card), "files": ("/data/of_someone/cells.npz",), "cautions": ("Small.",), "cites": ("A 2020",)})
    monkeypatch.setattr(type(classification.task), "card", lambda self: changed)
    bundle = classification.export_bundle(tmp_path / "bundle")
    assert json.loads((bundle / "docs/data_card.json").read_text())["files"] == ["cells.npz"]
    assert "someone" not in "".join(p.read_text() for p in [*bundle.rglob("*.md"), *bundle.rglob("*.json"), bundle / "LICENSE"])
    assert all(said in (bundle / "docs/data_card.md").read_text() for said in ("cells.npz", "Small.", "A 2020"))


def test_weights_of_double_precision_become_single(tmp_path):
    run = trained(tmp_path / "run", "classification", training={"precision": "float64"}, task={"pool": True})
    state = torch.load(run.export_bundle() / "models" / "model.pt", weights_only=True)
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert all(torch.equal(state[n], t.float()) for n, t in run.model().state_dict().items())


def test_the_command(classification):
    done = CliRunner().invoke(cli.main, ["export", "bundle", str(classification.folder), "--site", "site_1"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(classification.folder / "bundle-site_1")
    assert (classification.folder / "bundle-site_1" / "configs" / "inference.json").is_file()
    again = CliRunner().invoke(cli.main, ["export", "bundle", str(classification.folder), "--site", "site_1"])
    assert again.exit_code == 2
    assert "is not empty" in again.stderr


def refused(run, *args, error=ConfigError):
    with pytest.raises(error) as info:
        run.export_bundle(*args)
    assert info.value.hint
    return str(info.value)


def test_what_cannot_be_exported_says_why(segmentation, classification, tmp_path):
    assert "no shared model" in refused(segmentation, tmp_path / "x")
    assert "did you mean 'site_2'" in refused(segmentation, tmp_path / "x", "site2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "is not empty" in refused(classification, tmp_path / "full")
    assert "is no folder" in refused(classification, tmp_path / "full" / "notes.txt")
    assert "cannot be written" in refused(classification, tmp_path / "full" / "notes.txt" / "bundle")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    shutil.copytree(classification.folder, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    assert "has not finished" in refused(pppml.open(tmp_path / "unfinished"), tmp_path / "x", error=CheckpointError)
    assert not (tmp_path / "x").exists()


PARTS = ["LICENSE", "configs", "docs", "models"]


def test_an_empty_folder_is_taken_and_stays_the_same_folder(classification, tmp_path, monkeypatch):
    for name in ("empty", "linked", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    before = (tmp_path / "empty").stat().st_ino
    for name in ("empty", "link"):
        assert sorted(p.name for p in classification.export_bundle(tmp_path / name).iterdir()) == PARTS
    assert (tmp_path / "empty").stat().st_ino == before
    assert (tmp_path / "link").is_symlink()
    run = str(classification.folder.resolve())
    monkeypatch.chdir(tmp_path / "here")
    done = CliRunner().invoke(cli.main, ["export", "bundle", run, "-o", "."])
    assert done.exit_code == 0, done.stderr
    assert sorted(p.name for p in Path().iterdir()) == PARTS
    assert Path().stat().st_ino == (tmp_path / "here").stat().st_ino, "the shell stands in the folder with the bundle"


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_empty_folder_stays_empty_when_a_person_interrupts(classification, tmp_path, monkeypatch, when):
    (tmp_path / "empty").mkdir()
    rename = os.rename

    def interrupted(source, target):
        struck = Path(target) == tmp_path / "empty" / "docs"
        if struck and when == "before":
            raise KeyboardInterrupt
        rename(source, target)
        if struck:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classification.export_bundle(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_empty_folder_that_cannot_be_filled_stays_empty(classification, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    rename = os.rename

    def full(source, target):
        if Path(target) == tmp_path / "empty" / "docs":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    assert "No space left" in refused(classification, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_task_that_reads_in_a_way_of_its_own_is_refused(classification, tmp_path, monkeypatch):
    monkeypatch.setattr(type(classification.task), "prepare", lambda self, path: [], raising=False)
    assert "cannot tell MONAI how it reads" in refused(classification, tmp_path / "x")
    monkeypatch.setattr(type(classification.task), "readings", lambda self: as_stored(self.spec()))
    assert classification.export_bundle(tmp_path / "y").is_dir()


class Tells(ModelFactory):
    """A factory that tells MONAI whatever it is given."""

    def __init__(self, sections):
        self.sections = sections

    def build(self, spec):
        return torch.nn.Sequential(torch.nn.Conv2d(spec.channels, len(spec.classes), 1))

    def definition(self, spec):
        return self.sections


CONVOLUTION = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"layers": [CONVOLUTION, {"_target_": "torch.nn.ReLU"}], "network_def": "$torch.nn.Sequential(*@layers)"}, "another network"),
        ({"network_def": CONVOLUTION}, "cannot be used: RuntimeError"),
        ({"network_def": {"_target_": "torch.nn.Konv2d"}}, "cannot be used: ModuleNotFoundError"),
        ({"layers": [CONVOLUTION]}, "has no `network_def`"),
        ({"network_def": object()}, "cannot be used: TypeError"),
        ({"network_def": "$torch.nn.Sequential(*@layers)", "layers": [CONVOLUTION], "note": "pppml_core"}, "needs pppml"),
    ],
)
def test_a_definition_is_tried_before_it_is_believed(segmentation, sections, reason):
    spec = segmentation.task.spec()
    factory = Tells(sections)
    with pytest.raises(ConfigError, match=reason):
        network.describe(factory, spec, factory.build(spec).eval())
    right = Tells({"network_def": "$torch.nn.Sequential(*@layers)", "layers": [CONVOLUTION]})
    assert network.describe(right, spec, right.build(spec).eval()).script is None


#: (PIL can be imported here, so that without the check such a bundle would be written)
ELSEWHERE = [
    {"_target_": "pppml_core.builtin.tiny.TinyNet"},
    {"_target_": "PIL.Image.new"},
    {"_target_": "os.getcwd"},
    {"_target_": "torchvision.models.resnet18"},
    {"_target_": "monai_extra.nets.Net"},
    {"_target_": "Konv2d"},
    {"_target_": "%other"},
    {"deep": [{"_target_": "torch.nn.Sequential", "args": [{"_target_": "subprocess.run"}]}]},
    {"imports": ["$import glob", "$import PIL.Image"]},
    {"imports": ["$from PIL import Image"]},
    {"imports": ["$import math", "$import json"]},
    {"_target_": "functools.partial"},
    {"_target_": "$__import__('PIL.Image').Image.new"},
    {"value": "$__import__('PIL.Image').Image.open(@path)"},
    {"value": "$torch.importlib.import_module('PIL')"},
]


@pytest.mark.parametrize("part", ELSEWHERE)
def test_what_names_other_packages_is_refused(segmentation, part):
    spec = segmentation.task.spec()
    factory = Tells({"network_def": "$torch.nn.Sequential(*@layers)", "layers": [CONVOLUTION], "other": part})
    with pytest.raises(ConfigError, match=r"the definition that Tells gives names .*, which is not one of torch, MONAI and numpy") as info:
        network.describe(factory, spec, factory.build(spec).eval())
    assert info.value.place == "model"
    assert "torch, monai and numpy" in info.value.hint


def test_what_torch_monai_and_numpy_have_may_be_named(segmentation):
    spec = segmentation.task.spec()
    more = [
        {"_target_": "monai.networks.blocks.Swish"},
        {"_target_": "Swish"},
        {"_target_": "numpy.zeros", "shape": 2},
        {"_target_": "dict", "a": 1},
        {"_target_": "$torch.nn.ReLU"},
        {"_target_": "@made", "inplace": True},
    ]
    sections = {"network_def": "$torch.nn.Sequential(*@layers)", "layers": [CONVOLUTION], "made": "$torch.nn.ReLU", "more": more}
    factory = Tells(sections)
    assert network.describe(factory, spec, factory.build(spec).eval()).sections == sections
    assert len(network.parsed({"imports": network.IMPORTS, **sections}, "more")) == len(more)


def test_a_reading_that_names_other_packages_is_refused(classification, tmp_path, monkeypatch):
    first, *_ = classification.task.readings()
    foreign = dataclasses.replace(first, steps=(*first.steps, {"_target_": "PIL.ImageOps.invert", "keys": "image"}))
    monkeypatch.setattr(type(classification.task), "readings", lambda self: (first, foreign))
    assert "names 'PIL.ImageOps.invert'" in refused(classification, tmp_path / "x")
    assert not (tmp_path / "x").exists()


class Moody(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = torch.nn.Conv2d(1, 2, 1), how

    def forward(self, images):
        out = self.layer(images)
        if self.how == "counts":
            return out if len(images) == 1 else -out
        return {"logits": out}["logits" if float(out.sum()) < 1e9 else "none"] if self.how == "fine" else {"logits": {1, 2}}


def test_a_network_that_cannot_be_traced_is_refused(segmentation):
    spec = segmentation.task.spec()
    assert network.describe(Tells(None), spec, Moody("fine").eval()).script
    with pytest.raises(ConfigError, match="the network is another one"):
        network.describe(Tells(None), spec, Moody("counts").eval())
    with pytest.raises(ConfigError, match="cannot be traced as TorchScript"):
        network.describe(Tells(None), spec, Moody("set").eval())

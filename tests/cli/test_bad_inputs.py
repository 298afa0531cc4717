"""Everything a user can get wrong, from the command line to the one paragraph that says where, what and what to do.

A row of ``BAD`` spoils one thing of an input that works (``test_the_inputs_work_before_they_are_spoiled``), so that it fails when the
check it is about is taken away.
"""

# ruff: noqa: E501 - a row is a line

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pppml_core import known, registry
from pppml_core.component import KINDS
from pppml_core.known import KNOWN, Known

TASKS = ("pppml_lung_lesions", "pppml_blood_cells", "pppml_image_set", "pppml_chest_ct", "pppml_monai_nets")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in TASKS), reason="the task and model plugins are not all installed"
)
INSTALLED = {(dist.metadata["Name"] or "").lower().replace("_", "-") for dist in importlib.metadata.distributions()}
#: a plugin of the catalogue that is not installed, of a kind with a section of its own.
ABSENT = Known("aggregator", "far-sum", "pppml-far-sum", "plugins/aggregators/far_sum", "sums from far away")
HOOK = KINDS[ABSENT.kind]
RULES = sorted({"fedavg", "local-only", *(e.name for e in KNOWN if e.kind == "personalization" and e.distribution in INSTALLED)})
PLAN, RUN = "plan c.yaml", "run c.yaml --out runs/a"


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry more than there are plugins."""
    for module in (known, registry):
        monkeypatch.setattr(module, "KNOWN", (*KNOWN, ABSENT))


def once(array: Any, where: Any, value: Any) -> Any:
    """A copy of an array with one value in it."""
    out = np.array(array)
    out[where] = value
    return out


def floats(where: Any, value: float) -> Any:
    """Float images of which one pixel is not a number."""
    return once(np.random.default_rng(1).uniform(0, 1, (24, 32, 32)).astype(np.float32), where, value)


def shorten(w: Any, path: str, share: float = 0.5) -> None:
    """A file as an interrupted copy leaves it."""
    data = (w.folder / path).read_bytes()
    w.write(path, data[: int(len(data) * share)])


def spoil(w: Any, path: str, text: str | bytes) -> None:
    """Another content."""
    w.write(path, text)


# fmt: off
# name: (how it is made, command, exit code, place, reason, hint)
CONFIG = {
    "misspelt section": (lambda w: w.tiny("modle: unet"), PLAN, 2, "c.yaml:4: modle", "unknown key 'modle'", "did you mean 'model'?"),
    "misspelt key": (lambda w: w.tiny("training: {bach_size: 4}"), PLAN, 2, "c.yaml:4: training.bach_size", "unknown key", "'batch_size'"),
    "misspelt key of a component": (lambda w: w.config("task: {use: tiny, sits: 3}"), PLAN, 2, "c.yaml:1: task.sits", "unknown key", "'sites'"),
    "misspelt task": (lambda w: w.config("task: lung-lesion"), PLAN, 2, "c.yaml:1: task", "no task 'lung-lesion'", "'lung-lesions' (pppml-lung-lesions)"),
    "misspelt model": (lambda w: w.tiny("model: unett"), PLAN, 2, "c.yaml:4: model", "no model 'unett'", "'unet' (pppml-monai-nets)"),
    "misspelt aggregator": (lambda w: w.tiny("aggregator: plane"), PLAN, 2, "c.yaml:4: aggregator", "no aggregator 'plane'", "'plain' (pppml-core)"),
    "unknown personalization": (lambda w: w.tiny("personalization: zzz"), PLAN, 2, "c.yaml:4: personalization", "no personalization 'zzz'", f"there are: {', '.join(RULES)}"),
    "component of another kind": (lambda w: w.tiny("model: fedavg"), PLAN, 2, "c.yaml:4: model", "no model 'fedavg'", "of kind 'personalization'"),
    "text for a number": (lambda w: w.tiny("training: {batch_size: ten}"), PLAN, 2, "training.batch_size", "whole number, not 'ten'", "examples per step"),
    "list for a text": (lambda w: w.config("task: tiny\nrun: {name: [a]}"), PLAN, 2, "c.yaml:2: run.name", "a text, not a list", "name in reports"),
    "negative rounds": (lambda w: w.config("task: tiny\nrun: {rounds: -1}"), PLAN, 2, "c.yaml:2: run.rounds", "at least 1, not -1", "communication rounds"),
    "zero batch": (lambda w: w.tiny("training: {batch_size: 0}"), PLAN, 2, "c.yaml:4: training.batch_size", "at least 1, not 0", "examples per step"),
    "learning rate that is no number": (lambda w: w.tiny("training: {optimizer: {lr: .nan}}"), PLAN, 2, "training.optimizer.lr", "not nan", "learning rate"),
    "epochs and steps": (lambda w: w.tiny("training: {epochs: 1, steps: 2}"), PLAN, 2, "c.yaml:4: training", "not both", "settings of `training`"),
    "duplicate key": (lambda w: w.tiny("run: {seed: 2}"), PLAN, 2, "c.yaml:4", "'run' is given twice, in lines 3 and 4", "keep one"),
    "not YAML": (lambda w: w.config("task: tiny\nrun: {rounds: 1\n"), PLAN, 2, "c.yaml:3", "not valid YAML", "colons and quotes"),
    "a list": (lambda w: w.config("- task: tiny"), PLAN, 2, "c.yaml:1", "must be a map", "begin with `task: ...`"),
    "empty file": (lambda w: w.config(""), PLAN, 2, "c.yaml:1: task", "is missing", "task: one of "),
    "missing config": (lambda w: w.write("b.yaml"), PLAN, 2, "c.yaml", "there is no such file", "there are: b.yaml"),
    "folder as config": (lambda w: w.write("c.yaml/x"), PLAN, 2, "c.yaml", "cannot be read", "path of a YAML file"),
    "binary config": (lambda w: spoil(w, "c.yaml", b"\xff\xfe\x00"), PLAN, 2, "c.yaml", "not a text in UTF-8", "path of a YAML file"),
    "model file that is not there": (lambda w: w.tiny("model: 'net:Net'"), PLAN, 2, "model", "cannot import 'net:Net'", "a file net.py is `net:Name`"),
    "model file that cannot be imported": (lambda w: (w.write("net.py", "from torch import nn\nnn.Modle"), w.tiny("model: 'net:Net'")), PLAN, 2, "model", "'net' raises AttributeError when it is imported", "correct it"),
    "model that is no network": (lambda w: (w.write("net.py", "Net = 3"), w.tiny("model: 'net:Net'")), PLAN, 2, "model", "int is neither a torch module nor callable", "give a torch.nn.Module"),
    "model that needs arguments": (lambda w: (w.write("net.py", "def Net(width):\n    pass"), w.tiny("model: 'net:Net'")), PLAN, 2, "model.args", "missing a required argument: 'width'", "args: {...}"),
    "own task without its methods": (lambda w: (w.write("mine.py", "from pppml_core.interfaces.task import Task\nclass Mine(Task):\n    pass"), w.config("task: 'mine:Mine'")), PLAN, 2, "task", "Mine lacks card, load, sites, spec", "define what Task asks for"),
    "live object in a file": (lambda w: w.tiny("model: object"), PLAN, 2, "c.yaml:4: model", "a Python object is needed", "through the API"),
    "base config that is not there": (lambda w: w.tiny("extends: base.yaml"), PLAN, 2, "c.yaml:4: extends", "there is no file", "folder of this file"),
    "--set without value": (lambda w: w.tiny(), f"{PLAN} --set run.rounds", 2, "--set run.rounds", "there is no '='", "PATH=VALUE"),
    "--set of a bad value": (lambda w: w.tiny(), f"{PLAN} --set run.rounds=0", 2, "--set run.rounds=0", "at least 1, not 0", "communication rounds"),
    "negative seed": (lambda w: w.tiny(), f"{RUN} --seed -1", 2, "--set run.seed=-1", "at least 0, not -1", "root of all learning randomness"),
}
COMMANDS = {
    "misspelt command": (lambda w: None, "rum c.yaml", 2, "pppml", "no command 'rum'", "Did you mean 'run'?"),
    "unknown option": (lambda w: w.tiny(), f"{RUN} --rounds 3", 2, "pppml run", "--rounds", "`pppml run --help`"),
    "no config": (lambda w: None, "run", 2, "pppml run", "Give a CONFIG", "`pppml run --help`"),
    "--out and --resume": (lambda w: w.run_folder(), "run c.yaml --out runs/b --resume runs/a", 2, "pppml run", "not both", "`pppml run --help`"),
    "kind of plugin": (lambda w: None, "plugins --kind tasks", 2, "pppml plugins", "'tasks' is not one of", "`pppml plugins --help`"),
}
NPZ = {
    "missing data file": (lambda w: (w.lesions(), w.config("task: {use: lung-lesions, source: npz, path: e.npz}")), PLAN, 2, "e.npz", "no such file", "'d.npz' in the same folder"),
    "data path missing": (lambda w: w.config("task: {use: lung-lesions, source: npz}"), PLAN, 2, "c.yaml:1: task", "source npz needs a path", "settings of `lung-lesions`: source, target, path"),
    "neither file nor download": (lambda w: w.config("task: blood-cells"), PLAN, 2, "task.path", "neither a file nor a download", "path: FILE"),
    "truncated npz": (lambda w: (w.lesions(), shorten(w, "d.npz")), PLAN, 2, "d.npz", "truncated", "download it again"),
    "damaged npz": (lambda w: (w.lesions(), spoil(w, "d.npz", (w.folder / "d.npz").read_bytes().replace(b"\x3f", b"\x3e"))), PLAN, 2, "d.npz", "damaged", "download the file again"),
    "text called npz": (lambda w: (w.lesions(), spoil(w, "d.npz", "patient,split\n")), PLAN, 2, "d.npz", "not an npz file", "download it again"),
    "npz without masks": (lambda w: w.lesions("masks", mask=np.zeros((24, 32, 32))), PLAN, 2, "d.npz", "no array `masks`", "is `mask` meant?"),
    "npz without images": (lambda w: w.lesions("images"), PLAN, 2, "d.npz", "no array `images`", "add an array `images`"),
    "Python objects": (lambda w: w.lesions(patient=np.array(["a", None] * 12, object)), PLAN, 2, "d.npz", "`patient` holds Python objects", "numpy unicode"),
    "masks of another size": (lambda w: w.lesions(masks=np.zeros((24, 16, 16), np.uint8)), PLAN, 2, "d.npz", "`masks` of shape (24, 16, 16) do not fit", "32 x 32 pixels"),
    "fewer masks than images": (lambda w: w.lesions(masks=np.zeros((23, 32, 32), np.uint8)), PLAN, 2, "d.npz", "do not fit `images`", "for every image"),
    "mask values out of range": (lambda w: w.lesions(masks=once(np.zeros((24, 32, 32), np.uint8), (9, 3, 3), 2)), PLAN, 2, "d.npz", "the value 2 (first in example 9)", "correct the masks"),
    "masks of floats": (lambda w: w.lesions(masks=np.zeros((24, 32, 32))), PLAN, 2, "d.npz", "dtype float64, not integers", "class indices"),
    "label out of range": (lambda w: w.cells(labels=once(np.arange(48) % 2, 7, 5)), PLAN, 2, "d.npz", "`labels` of example 7 is 5", "add a class name"),
    "negative label": (lambda w: w.cells("class_names", labels=once(np.arange(48) % 2, 7, -1)), PLAN, 2, "d.npz", "`labels` of example 7 is -1", "correct it"),
    "fewer labels than images": (lambda w: w.cells(labels=np.arange(47) % 2), PLAN, 2, "d.npz", "47 entries for 48 images", "one entry for every image"),
    "NaN in the last image": (lambda w: w.lesions(images=floats((23, 31, 31), np.nan)), PLAN, 2, "d.npz", "NaN or infinite values, first in example 23 (1 in all)", "repair these"),
    "infinity in the middle": (lambda w: w.lesions(images=floats((11, 0, 9), np.inf)), PLAN, 2, "d.npz", "NaN or infinite values, first in example 11", "repair these"),
    "NaN in a labelled image": (lambda w: w.cells(images=once(np.full((48, 28, 28), 0.5), (40, 1, 1), np.nan)), PLAN, 2, "d.npz", "first in example 40", "repair these"),
    "HU without a window": (lambda w: w.lesions(images=np.full((24, 32, 32), -1000, np.int16)), PLAN, 2, "d.npz", "lie in [-1000, -1000]", "window: [black, white]"),
    "RGBA planes as volumes": (lambda w: w.lesions(images=np.zeros((24, 5, 32, 32), np.uint8)), PLAN, 2, "d.npz", "`images` has shape (24, 5, 32, 32)", "(N, height, width)"),
    "source out of range": (lambda w: w.lesions(source=np.arange(24) % 3), PLAN, 2, "d.npz", "`source` of example 2 is 2", "`source_names`"),
    "empty site": (lambda w: w.lesions(source_names=np.array(["East", "West", "North"])), PLAN, 2, "d.npz", "site 'north' has no example", "remove the empty source"),
    "site without training data": (lambda w: w.lesions(source=np.arange(24) // 2 % 3, source_names=np.array(["a", "b", "c"])), PLAN, 2, "d.npz", "site 'b' has no training example", "split `train`"),
    "class absent in training": (lambda w: w.cells(labels=(np.arange(48) // 4 % 3 > 0).astype(int)), PLAN, 2, "d.npz", "no site has a training example of class 'sick'", "remove the class"),
    "one patient in two splits": (lambda w: w.lesions(patient=np.array([f"p{i % 23}" for i in range(24)])), PLAN, 2, "d.npz", "patient 'p0' lies in both", "one part of `split`"),
    "one patient in two splits of one's own set": (lambda w: (w.cells(patient=np.arange(48) % 47), w.config("task: {use: image-set, path: d.npz}")), PLAN, 2, "d.npz", "patient '0' lies in both train and test", "one part of `split`"),
    "unknown split": (lambda w: w.lesions(split=np.array(["train", "val", "hold"] * 8)), PLAN, 2, "d.npz", "unknown part 'hold'", "train, val and test"),
    "more sites than examples": (lambda w: (w.cells(), w.config("task: {use: blood-cells, path: d.npz, partition: {by: iid, sites: 99}}")), PLAN, 2, "partition.sites", "too few: 99 are needed", "fewer sites"),
    "split that no draw can give": (lambda w: (w.cells(), w.config("task: {use: blood-cells, path: d.npz, partition: {by: dirichlet, sites: 4, alpha: 0.001, minimum: 4}}")), PLAN, 2, "partition.alpha", "no Dirichlet(0.001) draw", "larger alpha"),
}
FILES = {
    "unreadable picture": (lambda w: (w.pictures(), shorten(w, "pics/east/sick/0.png")), PLAN, 2, "pics/east/sick/0.png", "cannot be read as an image", "repair, replace or remove"),
    "pictures without classes": (lambda w: (w.pictures(), w.config("task: {use: image-set, path: pics/east/sick}")), PLAN, 2, "pics/east/sick", "images, but no class folder", "site/class/*.png"),
    "folder without pictures": (lambda w: (w.pictures(), w.write("empty/a/b/readme.txt"), w.config("task: {use: image-set, path: empty}")), PLAN, 2, "empty", "there is no image file", "site/class/*.png"),
    "missing picture folder": (lambda w: (w.pictures(), w.config("task: {use: image-set, path: pic}")), PLAN, 2, "pic", "no such file", "'pics' in the same folder"),
    "class folder that is not named": (lambda w: w.pictures(more=", classes: [ill, well]"), PLAN, 2, "pics/east/sick", "none of the classes ill, well", "add it to `classes`"),
    "pictures of two sizes": (lambda w: (w.pictures(), picture(w, "pics/west/well/3.png", (16, 16))), PLAN, 2, "pics/west/well/3.png", "16 x 16 pixels, others 32 x 32", "size: [32, 32]"),
    "colour among grey": (lambda w: (w.pictures(), picture(w, "pics/west/well/3.png", (32, 32, 3))), PLAN, 2, "pics/west/well/3.png", "a colour image among grey ones", "convert all"),
    "NaN in a float picture": (lambda w: (w.pictures(), picture(w, "pics/west/well/3.tif", (32, 32), np.nan)), PLAN, 2, "pics/west/well/3.tif", "NaN or infinite", "repair"),
    "picture without mask": (lambda w: (w.pairs(), os.remove("pics/masks/4.png")), PLAN, 2, "pics/images/4.png", "an image without a mask", "add the mask"),
    "mask of another size": (lambda w: (w.pairs(), picture(w, "pics/masks/4.png", (16, 16))), PLAN, 2, "pics/masks/4.png", "the mask has 16 x 16 pixels, its image 32 x 32", "own pixel grid"),
    "unreadable DICOM": (lambda w: (w.pictures("dcm"), shorten(w, "pics/east/sick/8.dcm")), PLAN, 2, "pics/east/sick/8.dcm", "DICOM pixels cannot be read", "repair or remove"),
    "text called DICOM": (lambda w: (w.pictures("dcm"), spoil(w, "pics/east/sick/8.dcm", "a,b")), PLAN, 2, "pics/east/sick/8.dcm", "cannot be read as DICOM", "repair, replace or remove"),
    "patients.csv of other files": (lambda w: (w.pictures(), w.write("pics/patients.csv", "file,patient\neast/sick/12.pgn,p\n")), PLAN, 2, "pics/patients.csv:2", "no image 'east/sick/12.pgn'", "'east/sick/12.png' meant?"),
    "patients.csv with another header": (lambda w: (w.pictures(), w.write("pics/patients.csv", "name,id\neast/sick/0.png,p\n")), PLAN, 2, "pics/patients.csv:1", "the header is name,id", "file,patient"),
    "patients.csv with two patients of one picture": (lambda w: (w.pictures(), w.write("pics/patients.csv", "file,patient\neast/sick/0.png,p\neast/sick/0.png,q\n")), PLAN, 2, "pics/patients.csv:3", "two patients, 'p' and 'q'", "keep one row"),
    "one patient is all of a site": (lambda w: (w.pictures(), w.write("pics/patients.csv", "file,patient\n" + "".join(f"east/{'sick' if n % 4 == 0 else 'well'}/{n}.png,p\n" for n in range(0, 32, 2)))), PLAN, 2, "site 'east'", "only 1 groups (patients)", "add data to this site"),
    "missing volume folder": (lambda w: (w.volumes(), w.config("task: {use: lung-lesions, source: ct, path: cts}")), PLAN, 2, "cts", "no such folder", "is 'ct' meant?"),
    "broken NIfTI": (lambda w: (w.volumes(), shorten(w, "ct/east/p1/ct.nii.gz")), PLAN, 2, "ct/east/p1/ct.nii.gz", "not a readable NIfTI file", "convert it again"),
    "NaN in a volume": (lambda w: (w.volumes(), w.nifti("ct/east/p1/ct.nii.gz", once(np.full((32, 32, 6), -1000.0, np.float32), (31, 31, 5), np.nan))), PLAN, 2, "ct/east/p1/ct.nii.gz", "NaN or infinite pixels", "replace them"),
    "mask volume of another shape": (lambda w: (w.volumes(), w.nifti("ct/east/p1/mask.nii.gz", np.zeros((32, 32, 5), np.uint8))), PLAN, 2, "ct/east/p1/mask.nii.gz", "the mask has 32x32x5 voxels, the CT 32x32x6", "grid of ct.nii.gz"),
    "mask volume elsewhere": (lambda w: (w.volumes(), w.nifti("ct/east/p1/mask.nii.gz", np.zeros((32, 32, 6), np.uint8), 9)), PLAN, 2, "ct/east/p1/mask.nii.gz", "its affine is not the CT's", "affine of ct.nii.gz"),
    "windowed volume": (lambda w: (w.volumes(), w.nifti("ct/east/p1/ct.nii.gz", np.ones((32, 32, 6), np.uint8))), PLAN, 2, "ct/east/p1/ct.nii.gz", "are no HU", "give HU"),
    "volume without mask": (lambda w: (w.volumes(), os.remove("ct/east/p1/mask.nii.gz")), PLAN, 2, "ct/east/p1", "no mask", "add mask.nii.gz"),
    "site without volumes": (lambda w: (w.volumes(), (w.folder / "ct/west").mkdir()), PLAN, 2, "ct/west", "site 'west' has no patient", "add patient/ct.nii.gz"),
    "too few patients": (lambda w: w.volumes(2), PLAN, 2, "ct", "site 'east' has 2 patients", "add patients"),
    "splits.csv with a patient in two parts": (lambda w: (w.volumes(), w.write("ct/splits.csv", "patient,split\np0,train\np1,val\np2,test\np0,test\n")), PLAN, 2, "ct/splits.csv:5", "patient 'p0' lies in both train and test", "keep one row"),
    "splits.csv without a patient": (lambda w: (w.volumes(), w.write("ct/splits.csv", "patient,split\np0,train\np1,val\n")), PLAN, 2, "ct/splits.csv", "patient 'east/p2' is not listed", "list every patient"),
    "unreadable DICOM series": (lambda w: (w.volumes(), os.remove("ct/east/p1/ct.nii.gz"), [w.write(f"ct/east/p1/dicom/{n}.dcm", "x") for n in range(2)]), PLAN, 2, "ct/east/p1/dicom/0.dcm", "not a readable DICOM slice", "copy it again"),
    "RAD-ChestCT without metadata": (lambda w: (w.write("rad/trn00001.npz"), w.config("task: {use: chest-ct, source: rad-chestct, path: rad}")), PLAN, 2, "rad", "no metadata file", "it names the scanners"),
}
FIT = {
    "size that the strides do not divide": (lambda w: w.lesions(images=np.zeros((24, 36, 36), np.uint8), masks=np.zeros((24, 36, 36), np.uint8)), PLAN, 2, "model", "(36, 36) is not divisible by 8", "use size (32, 32) or fewer levels"),
    "2-D model for volumes": (lambda w: own_task(w, "pass", size=(8, 8, 8), more="model: small-cnn\n"), PLAN, 2, "model", "small-cnn is a 2-D network", "use densenet"),
    "segmentation model for classes": (lambda w: w.tiny("model: unet"), PLAN, 2, "model", "unet is for segmentation", "use densenet or small-cnn"),
    "unknown MONAI network": (lambda w: w.tiny("model: {use: monai, name: DenseNet11}"), PLAN, 2, "model.name", "no network 'DenseNet11'", "did you mean 'DenseNet121'?"),
    "unknown argument of a MONAI network": (lambda w: w.tiny("model: {use: monai, name: DenseNet121, args: {droput_prob: 0.1}}"), PLAN, 2, "model.args", "no argument 'droput_prob'", "did you mean 'dropout_prob'?"),
    "class weights of another length": (lambda w: w.tiny("training: {class_weights: [1, 2]}"), PLAN, 2, "training.class_weights", "2 numbers for 3 classes", "place_0, place_1, place_2"),
    "cohort larger than sites": (lambda w: w.tiny(), f"{PLAN} --set run.cohort=4", 2, "run.cohort", "4 sites a round, but there are 3", "lower it"),
    "smallest cohort larger than cohort": (lambda w: w.tiny(), f"{PLAN} --set run.cohort=2 --set run.min_cohort=3", 2, "run.min_cohort", "3 is more than the 2 sites", "lower it"),
    "unknown stop metric": (lambda w: w.tiny(), f"{PLAN} --set run.stop.metric=acuracy", 2, "run.stop.metric", "no metric 'acuracy'", "did you mean 'accuracy'?"),
    "selection without metrics": (lambda w: w.tiny(), f"{PLAN} --set run.select=best-validation --set run.metrics=none", 2, "run.metrics", "none, but early stopping or run.select needs", "use per-site or sum"),
    "range pattern that matches nothing": (lambda w: w.tiny("encoding: {range: {'head.*': 1}}"), PLAN, 2, "encoding.range", "'head.*' matches no shared tensor", "0.weight"),
    "max_weight below the largest site": (lambda w: w.tiny("encoding: {max_weight: 7}"), PLAN, 2, "encoding.max_weight", "7 is below the largest site's weight 8", "raise it"),
    "cuda without a GPU": (lambda w: (no_gpu(w), w.tiny("training: {device: cuda}")), PLAN, 2, "training.device", "no usable GPU", "use auto or cpu"),
    "initial weights that are not there": (lambda w: w.tiny("training: {init: w.safetensors}"), PLAN, 2, "training.init", "there is no file w.safetensors", "give a safetensors file"),
    "initial weights that are no safetensors": (lambda w: (w.tiny("training: {init: w.safetensors}"), w.write("w.safetensors", "PK")), PLAN, 2, "training.init", "cannot be read", "give a safetensors file"),
    "initial weights of another model": (lambda w: (w.run_folder(), w.tiny("training: {init: runs/a/model.safetensors}\nmodel: {use: tiny-net, width: 4}")), PLAN, 2, "training.init", "does not fit the model: other shape: 0.weight (8, 1, 3, 3) for (4, 1, 3, 3)", "weights of the same model"),
    "floats for a sum of integers": (lambda w: (insecure(w), w.tiny("aggregator: insecure-masked-sum\nencoding: float")), PLAN, 2, "aggregator", "sums integers only, but encoding.use is float", "encoding: fixed"),
    "NaN in one's own data": (lambda w: own_task(w, "images[20, 0, 3, 3] = np.nan"), PLAN, 2, "task: site 'a', train", "image 20 holds NaN or infinity", "remove or repair"),
    "one's own data with a patient in two parts": (lambda w: own_task(w, "groups[25] = groups[0]"), PLAN, 2, "task: site 'a'", "is in train and in validation", "one part only"),
    "one's own data with unknown labels": (lambda w: own_task(w, "labels[3] = 2"), PLAN, 2, "task: site 'a', train", "label 2, but there are only 2 classes", "correct it"),
    "one's own images of another shape": (lambda w: own_task(w, "images = images[:, :, :7]"), PLAN, 2, "task: site 'a', train", "shape (1, 7, 8), but the task says (1, 8, 8)", "correct the images"),
    "one's own test data with unknown labels": (lambda w: own_task(w, "labels[39] = -1"), PLAN, 2, "task: site 'a', test", "label -1", "correct it"),
    "one's own data without training examples": (lambda w: own_task(w, "cut = 0"), PLAN, 2, "task: site 'A'", "no training examples", "give it data"),
}
FOLDERS = {
    "out is a file": (lambda w: (w.tiny(), w.write("runs/a")), RUN, 2, "pppml run", "'runs/a' is a file", "`pppml run --help`"),
    "out below a file": (lambda w: (w.tiny(), w.write("runs")), RUN, 1, "runs/a", "cannot write here: Not a directory", "another folder with --out"),
    "out where nobody may write": (lambda w: w.tiny(), "run c.yaml --out /proc/pppml", 1, "/proc/pppml", "cannot write here", "another folder with --out"),
    "disk full at the start": (lambda w: (w.tiny(), full_disk(w, "plan.json")), RUN, 1, "plan.json", "no space is left on the device", "--resume runs/a"),
    "disk full in a round": (lambda w: (w.tiny(), full_disk(w, "round-000001.checkpoint")), RUN, 1, "round-000001.checkpoint", "no space is left on the device", "--resume runs/a"),
    "disk full at the end": (lambda w: (w.tiny(), full_disk(w, "model.safetensors")), RUN, 1, "model.safetensors", "no space is left on the device", "--resume runs/a"),
    "disk full at the report": (lambda w: (w.tiny(), full_disk_for_the_report(w)), RUN, 1, "runs/a/report.html", "no space is left on the device", "--resume runs/a"),
    "out holds a run": (lambda w: w.run_folder(), RUN, 2, "runs/a", "already holds a run", "--resume runs/a, or another --out"),
    "resume with another config": (lambda w: w.run_folder(), "run c.yaml --resume runs/a --set training.optimizer.lr=0.5", 2, "runs/a/config.resolved.yaml", "training.optimizer.lr: 0.05 -> 0.5", "the same config"),
    "resume of a damaged run": (lambda w: (w.run_folder(unfinished=True), spoil(w, "runs/a/plan.json", '{"headline": "')), "run c.yaml --resume runs/a", 2, "runs/a/plan.json", "is damaged", "start a new run"),
    "resume without a sound checkpoint": (lambda w: (w.run_folder(unfinished=True), shorten(w, "runs/a/checkpoints/round-000001.checkpoint")), "run c.yaml --resume runs/a", 2, "runs/a/checkpoints", "no checkpoint can be read", "start a new run"),
    "resume of no run": (lambda w: (w.tiny(), w.write("runs/b/x")), "run c.yaml --resume runs/b", 2, "runs/b", "there is no run here", "run without --resume"),
    "resume of no run without config": (lambda w: None, "run --resume runs/b", 2, "runs/b", "there is no run here", "a folder that `pppml run` wrote"),
    "predict with no run": (lambda w: w.write("x.png"), "predict runs/b --input x.png -o p", 2, "runs/b", "there is no run here", "a folder that `pppml run` wrote"),
    "predict with an unfinished run": (lambda w: (w.run_folder(unfinished=True), w.write("x.png")), "predict runs/a --input x.png -o p", 2, "runs/a/model.safetensors", "has not written its model yet", "--resume runs/a"),
    "predict with damaged weights": (lambda w: (w.run_folder(), shorten(w, "runs/a/model.safetensors"), picture(w, "x.png", (8, 8))), "predict runs/a --input x.png -o p", 2, "runs/a/model.safetensors", "the weights cannot be read", "copy the file again"),
    "predict a missing file": (lambda w: w.run_folder(), "predict runs/a --input x.png -o p", 2, "x.png", "no such file", "give a NIfTI, DICOM, PNG or npz file"),
    "predict a broken file": (lambda w: (w.run_folder(), w.write("x.png", "x")), "predict runs/a --input x.png -o p", 2, "x.png", "not a readable picture", "save it again"),
    "predict for an unknown site": (lambda w: (w.run_folder(), w.write("x.png")), "predict runs/a --input x.png -o p --site sit_1", 2, "site", "no site 'sit_1' in this run", "did you mean 'site_1'?"),
    "predict into a file": (lambda w: (w.run_folder(), w.write("x.png"), w.write("p")), "predict runs/a --input x.png -o p", 2, "pppml predict", "'p' is a file", "`pppml predict --help`"),
    "report of no run": (lambda w: w.write("runs/b/x"), "report runs/b", 2, "runs/b", "holds none of the files of a run", "folder that `pppml run` wrote"),
    "report into a file's folder": (lambda w: (w.run_folder(), w.write("f")), "report runs/a -o f/r.html", 2, "f/r.html", "cannot be written", "another file with -o"),
    "report of nothing": (lambda w: None, "report runs/b", 2, "runs/b", "no such run directory", "folder that `pppml run` wrote"),
    "sweep with a bad grid": (lambda w: w.tiny(), "sweep c.yaml --grid personalization", 2, "--grid", "'personalization' is not a grid", "write a.b=x,y"),
    "sweep with one setting twice": (lambda w: w.tiny(), "sweep c.yaml --grid model=a --grid model=b", 2, "--grid", "model is given twice", "once"),
    "sweep with bad seeds": (lambda w: w.tiny(), "sweep c.yaml --seeds 1-5", 2, "--seeds", "'1-5' is neither a seed nor a range", "write 1..5"),
    "sweep whose last value is wrong": (lambda w: w.tiny(), "sweep c.yaml --grid run.rounds=1,0 --seeds 1", 2, "run.rounds", "at least 1, not 0", "communication rounds"),
    "sweep into another sweep": (lambda w: (w.tiny(), w.write("s/sweep.json", '{"version": 1, "base": {"run": {"rounds": 9}}, "points": {}}')), "sweep c.yaml --seeds 1 -o s", 2, "s", "a sweep of another config", "another folder with -o"),
    "sweep over an unknown setting": (lambda w: w.tiny(), "sweep c.yaml --grid modle=unet,densenet --seeds 1", 2, "modle", "unknown key 'modle'", "did you mean 'model'?"),
    "data card with pictures nowhere": (lambda w: w.tiny(), "data c.yaml -o nowhere/s.png", 1, "nowhere/s.png", "No such file or directory", "check the path"),
    "data card in an unknown format": (lambda w: w.tiny(), "data c.yaml -o s.xyz", 2, "s.xyz", "is not the name of a picture", "end it with .png"),
    "kind of a new plugin": (lambda w: None, "new-plugin my-sum --kind aggregater", 2, "--kind", "no template for the kind 'aggregater'", "did you mean aggregator?"),
    "name of a new plugin": (lambda w: None, "new-plugin 'My Task' --kind task", 2, "NAME", "is no name of a component", "try my-task"),
}
PLUGINS = {
    "plugin whose import fails": (lambda w: (w.plugin(ABSENT.distribution, "import not_there"), w.tiny(f"{ABSENT.kind}: {ABSENT.name}")), PLAN, 3, f"c.yaml:4: {ABSENT.kind}", "is broken: ModuleNotFoundError: No module named 'not_there'", "`pppml plugins`"),
    "plugin of another core": (lambda w: (w.offers(ABSENT.distribution, HOOK, ABSENT.name, requires="pppml-core>=7,<8"), w.tiny(f"{ABSENT.kind}: {ABSENT.name}")), PLAN, 3, f"c.yaml:4: {ABSENT.kind}", "requires pppml-core>=7,<8, but pppml-core 0.1.0 is running", "`pppml plugins`"),
    "two plugins of one name": (lambda w: (w.offers("sum-a", "pppml_aggregators", "my-sum"), w.offers("sum-b", "pppml_aggregators", "my-sum"), w.tiny("aggregator: my-sum")), PLAN, 3, "c.yaml:4: aggregator", "is offered by sum-a and sum-b", "uninstall one, or choose with PPPML_PLUGINS"),
    "known plugin that is not installed": (lambda w: w.tiny(f"{ABSENT.kind}: {ABSENT.name}"), PLAN, 3, f"c.yaml:4: {ABSENT.kind}", f"{ABSENT.distribution}, which is not installed", f"pip install {ABSENT.distribution} (in a checkout: pip install ./{ABSENT.folder})"),
    "plugin that PPPML_PLUGINS leaves out": (lambda w: (w.patch.setenv("PPPML_PLUGINS", "pppml-monai-nets"), w.config("task: image-set")), PLAN, 3, "c.yaml:1: task", "pppml-image-set, which is not loaded", "add pppml-image-set to PPPML_PLUGINS"),
    "plugin without its target": (lambda w: (w.offers("my-sum", "pppml_aggregators", "my-sum"), w.tiny("aggregator: my-sum")), PLAN, 3, "my-sum", "cannot be loaded from my_sum:Target", "install it again; if that does not help, report this to its author"),
    "plugin whose target is something else": (lambda w: (w.offers("my-sum", "pppml_aggregators", "my-sum", target="my_sum:Config"), w.tiny("aggregator: my-sum")), PLAN, 3, "my-sum", "my_sum:Config is no Aggregator", "report this to its author"),
    "plugin that needs what is not installed": (lambda w: (w.offers("my-sum", "pppml_aggregators", "my-sum", needs="('not_there',)"), w.tiny("aggregator: my-sum")), PLAN, 3, "my-sum", "needs not_there, not installed here", "pip install not_there"),
}
# fmt: on
BAD = CONFIG | COMMANDS | NPZ | FILES | FIT | FOLDERS | PLUGINS


def picture(w: Any, path: str, shape: tuple[int, ...], value: float | None = None) -> None:
    """A grey or colour picture; with ``value`` in its last pixel, a float one."""
    from PIL import Image

    array = np.zeros(shape, np.uint8) if value is None else once(np.zeros(shape, np.float32), (-1, -1), value)
    Image.fromarray(array).save(w.write(path))


def no_gpu(w: Any) -> None:
    """A machine without a GPU."""
    import torch

    w.patch.setattr(torch.cuda, "is_available", lambda: False)


def insecure(w: Any) -> None:
    """The example sums of the conformance kit, as if installed."""
    w.plugin("pppml-insecure", "from pppml_core.testing.insecure_plugin import pppml_aggregators")


def own_task(w: Any, spoiled: str, *, size: tuple[int, ...] = (8, 8), more: str = "") -> None:
    """A researcher's own data set in a file, without plugin: 24 training examples of one site, then 8 and 8."""
    w.write(
        "mine.py",
        f"""
import numpy as np
from pppml_core.interfaces.task import DataCard, SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.metrics import CLASSIFICATION_METRICS

class Mine(Task):
    def spec(self):
        return TaskSpec("classification", 1, {size}, ("well", "ill"), "tiny-net", "accuracy", CLASSIFICATION_METRICS)

    def sites(self):
        return (SiteInfo("a", "A"), SiteInfo("b", "B"))

    def load(self, site):
        images, labels, cut = np.random.default_rng(0).random((40, 1, *{size}), np.float32), np.arange(40) % 2, 24
        groups = np.array([f"{{site}}{{i}}" for i in range(40)])
        if site == "a":
            {spoiled}
        parts = [slice(0, cut), slice(24, 32), slice(32, 40)]
        return SiteData(*(ArrayExamples(images[p], labels[p], groups[p]) for p in parts))

    def card(self):
        return DataCard("mine", "mine", "mine", "mine")
""",
    )
    w.config(f"task: 'mine:Mine'\nrun: {{rounds: 1}}\nreporters: [jsonl]\n{more}")


def full_disk(w: Any, name: str) -> None:
    """A disk that is full when the file of that name is to be written."""

    def fsync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if name in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    w.patch.setattr(os, "fsync", fsync)


def full_disk_for_the_report(w: Any) -> None:
    """A disk that is full when the page is to be put into its place."""
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "report.html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)
        real(source, target)

    w.patch.setattr(os, "replace", replace)


def check(done: Any, code: int, place: str, reason: str, hint: str) -> None:
    """One paragraph on stderr: place, reason and hint in this order."""
    text = done.err
    assert done.code == code, text
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text + done.out
    assert "unexpected" not in text
    for part in (place, reason, hint):
        assert part in text, f"{part!r} is not in {text}"
    assert text.index(place) <= text.index(reason) < text.rindex(hint), text


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, world: Any) -> None:
    make, line, code, place, reason, hint = BAD[case]
    make(world)
    there = set(world.folder.rglob("*"))
    done = world.pppml(line)
    check(done, code, place, reason, hint)
    if line.startswith("plan "):
        # `pppml run` refuses what `pppml plan` refuses, with the same code and words, before anything is written.
        again = world.pppml(f"run{line.removeprefix('plan')} --out runs/new")
        assert (again.code, again.err) == (done.code, done.err)
        assert {path for path in set(world.folder.rglob("*")) - there if "__pycache__" not in path.parts} == set()


def test_there_are_enough() -> None:
    assert len(BAD) >= 45
    assert len(BAD) == sum(map(len, (CONFIG, COMMANDS, NPZ, FILES, FIT, FOLDERS, PLUGINS)))


GOOD = {
    "tiny": lambda w: w.tiny(),
    "lesions": lambda w: w.lesions(),
    "cells": lambda w: w.cells(),
    "volumes": lambda w: w.volumes(),
    "pictures": lambda w: w.pictures(),
    "DICOM pictures": lambda w: w.pictures("dcm"),
    "pairs": lambda w: w.pairs(),
    "one's own": lambda w: own_task(w, "pass"),
    "an insecure sum": lambda w: (insecure(w), w.tiny("aggregator: insecure-masked-sum")),
    "a run folder": lambda w: w.run_folder(),
}


@pytest.mark.parametrize("case", GOOD)
def test_the_inputs_work_before_they_are_spoiled(case: str, world: Any) -> None:
    GOOD[case](world)
    done = world.pppml(PLAN)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("line", [PLAN, RUN])
def test_all_misfits_are_told_at_once(world: Any, line: str) -> None:
    """Mistakes in data, model, settings and engine do not hide each other, whatever else is wrong."""
    own_task(world, "images[20, 0, 3, 3] = np.nan; groups[25] = groups[0]")
    world.patch.setattr("pppml_core.engines.local.LocalEngine.misfits", lambda self, objects: ["engine: made to refuse"])
    no_gpu(world)
    for number, more in enumerate(
        (
            "training: {class_weights: [1, 2, 3], device: cuda}\nrun: {cohort: 3, metrics: none, stop: {metric: acuracy}}\n",
            "training: {init: w.safetensors}\nmodel: unet\nrun: {min_cohort: 3, select: best-validation, metrics: none}\n",
        )
    ):
        world.config(f"task: 'mine:Mine'\nreporters: [jsonl]\n{more}")
        done = world.pppml(f"{line}{number}" if line == RUN else line)
        assert done.code == 2, done.err
        expected = [
            "engine: made to refuse",
            "task: site 'a', train: image 20 holds NaN",
            "task: site 'a': 'a0' is in train and in validation",
            "run.metrics: none",
            *(
                (
                    "training.class_weights: 3 numbers",
                    "training.device: cuda",
                    "run.cohort: 3 sites",
                    "run.stop.metric: the task has no metric",
                ),
                ("model: unet is for segmentation", "run.min_cohort: 3 is more than"),
            )[number],
        ]
        for text in expected:
            assert done.err.count(text) == 1, f"{text!r} is not once in {done.err}"
        assert f"refused for {len(expected)} reasons: " in done.err
        assert done.err.count("\n") == 1
    assert not (world.folder / "runs").exists()


def test_misfits_of_model_weights_and_sum_are_told_at_once(world: Any) -> None:
    insecure(world)
    world.tiny("aggregator: insecure-masked-sum\nencoding: {use: float, max_weight: 7, range: {'head.*': 1}}\n")
    done = world.pppml(PLAN)
    assert done.code == 2
    for text in ("encoding.max_weight: 7", "aggregator: sums integers only", "encoding.range: 'head.*'"):
        assert text in done.err
    assert "refused for 3 reasons" in done.err


def test_a_refused_plan_is_still_printed(world: Any) -> None:
    world.tiny("training: {class_weights: [1, 2]}")
    done = world.pppml(f"{PLAN} --json --set run.cohort=9")
    assert done.code == 2
    plan = json.loads(done.out)
    assert [text.partition(":")[0] for text in plan["misfits"]] == ["run.cohort", "training.class_weights"]
    assert plan["headline"] == "This plan is refused."
    table = world.pppml(f"{PLAN} --set run.cohort=9").out
    assert "run.cohort: 9 sites a round, but there are 3; lower it" in " ".join(table.split())


@pytest.mark.parametrize("line", [PLAN, RUN])
def test_all_mistakes_of_a_config_are_told_at_once(world: Any, line: str) -> None:
    world.config(f"task: {{use: tiny, sites: 0}}\nrun: {{rounds: -1, ronds: 2}}\nmodle: unet\n{ABSENT.kind}: {ABSENT.name}\n")
    done = world.pppml(line)
    assert done.code == 2
    assert done.err.startswith("error: c.yaml: 5 problems:\n")
    for text in ("c.yaml:1: task.sites", "c.yaml:2: run.rounds", "'rounds'?", "'model'?", f"pip install {ABSENT.distribution}"):
        assert text in done.err
    assert "\n\n" not in done.err


def test_the_plugin_table_works_whatever_is_installed(world: Any) -> None:
    world.plugin("broken-sum", "import not_there")
    world.plugin("exiting-sum", "raise SystemExit(5)")
    world.offers("old-sum", "pppml_aggregators", "old-sum", requires="pppml-core<0.1")
    world.offers("sum-a", "pppml_aggregators", "my-sum")
    world.offers("sum-b", "pppml_aggregators", "my-sum")
    world.offers("needy-sum", "pppml_aggregators", "needy-sum", needs="('not_there',)")
    done = world.pppml("plugins --json")
    assert (done.code, done.err) == (0, "")
    rows = {row["distribution"]: row for row in json.loads(done.out)}
    assert (rows["broken-sum"]["status"], rows["broken-sum"]["summary"]) == ("broken", "ModuleNotFoundError: No module named 'not_there'")
    assert (rows["exiting-sum"]["status"], rows["exiting-sum"]["summary"]) == ("broken", "SystemExit: 5")
    assert rows["old-sum"]["status"] == "broken"
    assert "requires pppml-core<0.1" in rows["old-sum"]["summary"]
    assert {rows[name]["status"] for name in ("sum-a", "sum-b")} == {"conflict"}
    assert rows["needy-sum"]["status"] == "needs not_there"
    assert rows["pppml-core"]["status"] == "ok"
    assert "broken-sum" in world.pppml("plugins").out
    # A broken plugin does not stand in the way of what does not use it.
    world.tiny()
    assert world.pppml(PLAN).code == 0


def test_live_objects_and_workers(world: Any) -> None:
    """What cannot be typed: an object given in Python, and processes that cannot have it."""
    import torch

    from pppml_core import Experiment
    from pppml_core.errors import PlanRefused

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    experiment = Experiment(task={"use": "tiny", "sites": 2, "examples": 6}, model=network, engine={"use": "local", "workers": 2})
    with pytest.raises(
        PlanRefused, match=r"engine.workers: 2 processes cannot share live Python objects \(model\); use workers: 1"
    ) as caught:
        experiment.run(world.folder / "runs/a")
    assert caught.value.exit_code == 2
    assert not (world.folder / "runs").exists()


#: Rows that a process of its own is started for, one of each exit code.
PROCESSES = ("negative rounds", "plugin that PPPML_PLUGINS leaves out", "out below a file")


@pytest.mark.parametrize("case", PROCESSES)
def test_in_a_process_of_its_own(case: str, world: Any) -> None:
    make, line, code, place, reason, hint = BAD[case]
    make(world)

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pppml_core.cli", *line.split(), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    done = call()
    for part in (place, reason, hint):
        assert part in done.stderr
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    if code == 1:  # this one loads torch: once is enough
        return
    debug = call("--debug")
    assert debug.returncode == code
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith(done.stderr)

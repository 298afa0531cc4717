"""The configs of a bundle: ``inference.json`` for the usual kind of file, and what changes for every other kind.

They do what :mod:`pppml_core.learning.predict` does, in the words of MONAI's own bundles. Softmax is part of ``network``, because windows
are blended as probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pppml_core.interfaces.task import Reading, TaskSpec
from pppml_core.learning.bundle.network import IMPORTS
from pppml_core.learning.bundle.readings import apply, step
from pppml_core.learning.evaluation import OVERLAP, WINDOWS

Config = dict[str, Any]
WEIGHTS = "models/model.pt"


def configs(spec: TaskSpec, network: Mapping[str, Any], readings: Sequence[Reading]) -> dict[str, Config]:
    """File name -> config: ``inference.json``, and ``NAME.json`` to be laid over it for each further reading."""
    first, *others = readings
    return {"inference.json": _inference(spec, network, first), **{f"{r.name}.json": _for_files(spec, r) for r in others}}


def _inference(spec: TaskSpec, network: Mapping[str, Any], reading: Reading) -> Config:
    return {
        "imports": IMPORTS,
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        **network,
        "network": "$torch.nn.Sequential(@network_def, torch.nn.Softmax(dim=1)).to(@device).eval()",
        **_for_files(spec, reading),
        "dataset": {"_target_": "Dataset", "data": "$[{'image': file} for file in @datalist]", "transform": "@preprocessing"},
        # In this process: lambdas cannot be sent to another one everywhere.
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "handlers": _handlers(spec),
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        # Not under `initialize`: monai.bundle.load evaluates that from any working directory, and loads the weights itself.
        "weights": f"$@network_def.load_state_dict(torch.load(@bundle_root + '/{WEIGHTS}', map_location=@device, weights_only=True))",
        "run": ["$@weights", "$@evaluator.run()"],
    }


def _for_files(spec: TaskSpec, reading: Reading) -> Config:
    """What depends on the kind of file."""
    # glob ends folders with a slash, and then their name is empty
    stripped = "path.rstrip('/')" if reading.pattern.endswith("/") else "path"
    return {
        "datalist": f"$sorted({stripped} for path in glob.glob(os.path.join(@dataset_dir, '{reading.pattern}')))",
        "preprocessing": {"_target_": "Compose", "transforms": [*_file_first(reading), *reading.steps, *_to_size(spec, reading)]},
        "inferer": _inferer(spec, reading),
        "postprocessing": {"_target_": "Compose", "transforms": _written(spec, reading)},
    }


def _file_first(reading: Reading) -> list[Config]:
    """The path is kept where the answer has to find back to the file's own grid."""
    return [] if reading.grid == "same" else [{"_target_": "CopyItemsd", "keys": "image", "names": "file"}]


def _to_size(spec: TaskSpec, reading: Reading) -> list[Config]:
    """Classification looks at whole images of one size."""
    if spec.kind == "segmentation":
        return [step("EnsureTyped", dtype="$torch.float32")]
    mode = "bilinear" if reading.dims == 2 else "trilinear"
    # Resized would blur an image that has the size already.
    wanted, resize = tuple(spec.size), f"monai.transforms.Resize({list(spec.size)}, mode='{mode}', anti_aliasing=True)"
    return [apply(f"x if tuple(x.shape[1:]) == {wanted} else {resize}(x)"), step("EnsureTyped", dtype="$torch.float32")]


def _inferer(spec: TaskSpec, reading: Reading) -> Config:
    if spec.kind == "classification":
        return {"_target_": "SimpleInferer"}
    windows = {
        "roi_size": list(spec.size),
        "sw_batch_size": WINDOWS,
        "overlap": OVERLAP,
        "mode": "gaussian",
        "padding_mode": "replicate",
    }
    if reading.dims > len(spec.size):
        return {"_target_": "SliceInferer", "spatial_dim": reading.dims - 1, **windows}
    return {"_target_": "SlidingWindowInferer", **windows}


def _written(spec: TaskSpec, reading: Reading) -> list[Config]:
    """From probabilities to files: a mask of class indices on the file's grid; classes are written by a handler."""
    if spec.kind == "classification":
        return [{"_target_": "EnsureTyped", "keys": "pred", "device": "cpu"}]
    picture = reading.dims == 2
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "mask",
        "output_ext": ".png" if picture else ".nii.gz",
        "output_dtype": "$numpy.uint8",
        "resample": False,
        "separate_folder": False,
        "print_log": False,
    }
    # MONAI writes pictures with the columns first.
    turn = [{"_target_": "Transposed", "keys": "pred", "indices": [0, 2, 1]}] if picture else []
    return [
        {"_target_": "EnsureTyped", "keys": "pred", "device": "cpu"},
        *_back(reading),
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        *turn,
        save,
    ]


def _back(reading: Reading) -> list[Config]:
    """Probabilities onto the grid of the file."""
    if reading.grid == "same":
        return []
    load = reading.steps[0]
    again = {**load, "keys": "file"}
    if reading.grid == "affine":
        # Outside of what was predicted every class is 0: background.
        resample = {"_target_": "ResampleToMatchd", "keys": "pred", "key_dst": "file", "mode": "bilinear", "padding_mode": "zeros"}
        return [again, {**resample, "align_corners": True}]
    resize = "torch.nn.functional.interpolate(d['pred'][None], size=d['file'].shape[1:], mode='bilinear', align_corners=False)[0]"
    return [again, f"$lambda d: {{**d, 'pred': {resize}}}"]  # type: ignore[list-item]


def _handlers(spec: TaskSpec) -> list[Config]:
    if spec.kind == "segmentation":
        return []
    return [
        {
            "_target_": "ClassificationSaver",
            "output_dir": "@output_dir",
            "filename": "predictions.csv",
            "batch_transform": "$lambda batch: [item['image'].meta for item in batch]",
            "output_transform": "$monai.handlers.from_engine(['pred'])",
        }
    ]

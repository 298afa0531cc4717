"""Use a MONAI bundle as somebody does who does not have pppml: in a fresh process in which importing pppml or a plugin of it fails."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_SCRIPT = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("pppml"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Nowhere())
try:
    import pppml_core
except ImportError:
    pass
else:
    raise SystemExit("pppml can be imported")

import numpy, runpy, torch
from monai.bundle import ConfigParser

torch.set_num_threads(1)
out, folder, run, *configs = sys.argv[1:]
bundle = ConfigParser()
bundle.read_config(configs)
bundle["dataset_dir"] = folder
bundle.get_parsed_content("weights")
network, inferer = bundle.get_parsed_content("network"), bundle.get_parsed_content("inferer")
found = {}
with torch.no_grad():
    for batch in bundle.get_parsed_content("dataloader"):
        file = batch["image"].meta["filename_or_obj"][0]
        probabilities = inferer(batch["image"].to(bundle.get_parsed_content("device")), network)
        found[file.rsplit("/", 1)[-1].split(".")[0]] = numpy.asarray(probabilities[0].cpu())
numpy.savez(out, allow_pickle=False, **found)
if run == "run":
    sys.argv = ["monai.bundle", "run", "--config_file", str(configs), "--dataset_dir", folder]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
assert not [name for name in sys.modules if name.startswith("pppml")]
"""


def predict_alone(
    bundle: str | Path, folder: str | Path, configs: Sequence[str] = ("inference.json",), *, workflow: bool = False
) -> dict[str, npt.NDArray[np.float32]]:
    """Probabilities by file name (without endings) of the files in ``folder``, from ``bundle``'s own network, readers and windows.

    Args:
        bundle: its folder.
        folder: with files of the kind that the configs are for.
        configs: names in ``configs/``, each laid over the one before.
        workflow: also ``python -m monai.bundle run`` (needs pytorch-ignite and fire), which writes the bundle's ``eval`` folder.

    Raises AssertionError with what the process said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.npz"
        arguments = [str(out), str(Path(folder).resolve()), "run" if workflow else "", *(f"configs/{name}" for name in configs)]
        done = subprocess.run([sys.executable, "-c", _SCRIPT, *arguments], cwd=bundle, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"the bundle does not work alone:\n{done.stderr[-4000:]}"
        with np.load(out) as found:
            return {name: np.asarray(found[name]) for name in found.files}

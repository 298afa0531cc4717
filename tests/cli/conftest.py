"""What users type and have on their disks: small good inputs, each of which a test spoils in one place."""

from __future__ import annotations

import importlib
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pppml_core import cli

#: an audit that reads no view and finds everything.
LOOK = """
    from pppml_core import Component, ComponentConfig, hookimpl
    from pppml_core.interfaces.attack import Attack, Verdict

    class Config(ComponentConfig):
        depth: int = 3

    class Look(Attack):
        reads_view = False

        def run(self, view, budget, ctx):
            metrics = {"depth": self.config.depth, "share": 0.123456}
            return Verdict("recovered", "it saw [everything]", metrics, {"passed": True})

    @hookimpl
    def pppml_attacks():
        return [Component("look", Config, "pppml_look:Look", "made up for a test")]
    """
TINY = "task: {use: tiny, sites: 3, examples: 6}\nreporters: [jsonl]\nrun: {rounds: 1}\n"


@dataclass(frozen=True)
class Done:
    """What a command left: exit code and texts."""

    code: int
    out: str
    err: str


class World:
    """An empty folder, which is the current one, and writers of small good inputs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Path) -> None:
        self.folder, self.patch, self._capsys, self._finished = folder, monkeypatch, capsys, finished

    def pppml(self, line: str) -> Done:
        """A command as the shell would call it, in this process."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(line))
        text = self._capsys.readouterr()
        return Done(int(ended.value.code or 0), text.out, text.err)

    def write(self, path: str, text: str | bytes = "") -> Path:
        """A file, with its folder."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def config(self, text: str) -> None:
        """``c.yaml``."""
        self.write("c.yaml", text)

    def tiny(self, more: str = "") -> None:
        """A config that works, in three lines, and ``more`` from line 4 on."""
        self.config(TINY + more)

    def lesions(self, drop: str = "", more: str = "", **arrays: Any) -> None:
        """Float images of 32 x 32 pixels with masks, of two sources; all but ``drop``, with ``arrays`` instead of or besides them."""
        draw = np.random.default_rng(0)
        n = 24
        images = draw.uniform(0, 1, (n, 32, 32)).astype(np.float32)
        content = {
            "images": images,
            "masks": (images > 0.8).astype(np.uint8),
            "mask_names": np.array(["background", "lesion"]),
            "source": np.arange(n) % 2,
            "source_names": np.array(["East", "West"]),
            "split": np.arange(n) // 2 % 3,
            "patient": np.array([f"p{i}" for i in range(n)]),
            **arrays,
        }
        content.pop(drop, None)
        np.savez(self.folder / "d.npz", **content)
        self.config(f"task: {{use: lung-lesions, source: npz, path: d.npz}}\n{more}")

    def cells(self, drop: str = "", more: str = "", **arrays: Any) -> None:
        """Grey pictures of 28 x 28 pixels with a label each, of two sources."""
        draw = np.random.default_rng(0)
        n = 48
        content = {
            "images": draw.integers(0, 256, (n, 28, 28)).astype(np.uint8),
            "labels": np.arange(n) % 2,
            "class_names": np.array(["normal", "sick"]),
            "source": np.arange(n) // 2 % 2,
            "source_names": np.array(["East", "West"]),
            "split": np.arange(n) // 4 % 3,
            **arrays,
        }
        content.pop(drop, None)
        np.savez(self.folder / "d.npz", **content)
        self.config(f"task: {{use: blood-cells, path: d.npz}}\nmodel: {{use: small-cnn, channels: [8, 8, 8]}}\n{more}")

    def volumes(self, patients: int = 3) -> None:
        """``ct/east/p0/ct.nii.gz`` and ``mask.nii.gz`` and so on: a cube of tissue in air, a lesion in it."""
        for index in range(patients):
            hu = np.full((32, 32, 6), -1000, np.int16)
            hu[8:24, 8:24] = 40
            mask = np.zeros(hu.shape, np.uint8)
            mask[12:16, 12:16, 2:4] = 1
            self.nifti(f"ct/east/p{index}/ct.nii.gz", hu)
            self.nifti(f"ct/east/p{index}/mask.nii.gz", mask)
        self.config("task: {use: lung-lesions, source: ct, path: ct, size: 32}\n")

    def nifti(self, path: str, array: np.ndarray, shift: float = 0.0) -> Path:
        """A volume of 1 mm voxels, moved by ``shift`` mm."""
        import nibabel

        affine = np.eye(4)
        affine[:3, 3] = shift
        file = self.write(path)
        nibabel.save(nibabel.Nifti1Image(array, affine), file)
        return file

    def dicom(self, path: str) -> Path:
        """A grey slice of 32 x 32 pixels as scanners write it."""
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = self.write(path)
        data = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, "1.2.3"
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 32, 32, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleIntercept, data.RescaleSlope = -1024, 1
        data.PixelData = (np.arange(1024) * 3).astype("<u2").tobytes()
        data.save_as(file, enforce_file_format=True)
        return file

    def pictures(self, kind: str = "png", more: str = "") -> None:
        """``pics/east/sick/0.png`` and so on: two sites, two classes, eight pictures each; of ``kind`` dcm, CT slices."""
        from PIL import Image

        for number in range(32):
            site, name = ("east", "west")[number % 2], ("sick", "well")[number // 2 % 2]
            if kind == "dcm":
                self.dicom(f"pics/{site}/{name}/{number}.dcm")
            else:
                Image.fromarray(np.full((32, 32), 7 * number, np.uint8)).save(self.write(f"pics/{site}/{name}/{number}.png"))
        self.config(f"task: {{use: image-set, path: pics{more}}}\nmodel: {{use: small-cnn, channels: [8, 8, 8]}}\n")

    def pairs(self) -> None:
        """``pics/images/0.png`` with ``pics/masks/0.png`` and so on."""
        from PIL import Image

        for number in range(10):
            for part in ("images", "masks"):
                picture = np.eye(32, dtype=np.uint8) * (255 if part == "images" else 1)
                Image.fromarray(picture).save(self.write(f"pics/{part}/{number}.png"))
        self.config("task: {use: image-set, path: pics}\n")

    def plugin(self, distribution: str, source: str, *, requires: str = "pppml-core>=0.1,<0.2") -> None:
        """A distribution as pip would have installed it: a module and its metadata, first on ``sys.path``."""
        module = distribution.replace("-", "_")
        self.write(f"site/{module}.py", textwrap.dedent(source))
        self.write(
            f"site/{module}-0.1.0.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1.0\nRequires-Dist: {requires}\n",
        )
        self.write(f"site/{module}-0.1.0.dist-info/entry_points.txt", f"[pppml]\nplugin = {module}\n")
        self.patch.syspath_prepend(str(self.folder / "site"))

    def offers(
        self, distribution: str, hook: str, name: str, *, target: str = "", needs: str = "()", requires: str = "pppml-core>=0.1,<0.2"
    ) -> None:
        """A distribution that offers one component."""
        target = target or f"{distribution.replace('-', '_')}:Target"
        source = f"""
            from pppml_core import Component, ComponentConfig, hookimpl

            class Config(ComponentConfig):
                pass

            @hookimpl
            def {hook}():
                return [Component("{name}", Config, "{target}", "made up for a test", needs={needs})]
            """
        self.plugin(distribution, source, requires=requires)

    def look(self) -> None:
        """The attack ``look``, installed."""
        self.plugin("pppml-look", LOOK)

    def run_folder(self, *, unfinished: bool = False) -> None:
        """``runs/a``: a run of the config of :meth:`tiny`, finished or as if it had been killed before its end."""
        shutil.copytree(self._finished, self.folder / "runs/a")
        if unfinished:
            for name in ("result.json", "model.safetensors", "report.html"):
                (self.folder / "runs/a" / name).unlink()
        self.tiny()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; copied, never changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "c.yaml").write_text(TINY)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(folder / "c.yaml"), "--out", str(folder / "a")])
    assert not ended.value.code
    return folder / "a"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Path) -> Iterator[World]:
    """A user's folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("PPPML_PLUGINS", raising=False)
    modules = set(sys.modules)
    yield World(folder, monkeypatch, capsys, finished)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()

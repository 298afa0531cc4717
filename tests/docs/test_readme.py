"""README.md and examples/: what they print is carried out, what they list is compared."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click import Context

import pppml_core
from pppml_core import cli, errors
from pppml_core.errors import PppmlError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def need_plugins():
    for name in ("blood_cells", "chest_ct", "image_set", "lung_lesions", "monai_nets"):
        pytest.importorskip(f"pppml_{name}")


def slices(path, target="masks", each=12):
    """An npz file of 3 sources with so many images each, 32 x 32, two of every patient."""
    generator = np.random.default_rng(0)
    n = 3 * each
    images = generator.integers(0, 256, (n, 32, 32), dtype=np.uint8)
    masks = np.zeros((n, 32, 32), np.uint8)
    masks[:, 8:20, 8:20] = 1
    images[masks == 1] //= 2
    targets = {"masks": masks} if target == "masks" else {"labels": np.arange(n) % 3}
    split = np.tile([0] * (each // 2) + [1] * (each // 6) + [2] * (each // 3), 3)
    np.savez(
        path, images=images, **targets, source=np.arange(n) // each, source_names=["a", "b", "c"], patient=np.arange(n) // 2, split=split
    )


def pictures(folder):
    """`hospital/class/*.png`, two hospitals, two classes, the patient in the name."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for hospital in ("hospital_a", "hospital_b"):
        for number, name in enumerate(("normal", "sick")):
            (folder / hospital / name).mkdir(parents=True)
            for i in range(16):
                pixels = generator.integers(0, 128, (32, 32), dtype=np.uint8) + np.uint8(120 * number)
                Image.fromarray(pixels).save(folder / hospital / name / f"p{number}{i // 2}__{i}.png")


# -- lists ----------------------------------------------------------------------------------------------------------------------------


def test_the_table_of_plugins():
    need_plugins()
    section = README.split("## Plugins in this repository")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in section.splitlines() if line.startswith("| ")][1:]
    stated = set()
    for kind, name, distribution, summary in ([cell.strip() for cell in row] for row in rows):
        linked = re.fullmatch(r"\[([\w-]+)\]\((plugins/.*)/README\.md\)", distribution)
        if linked:
            declared = (ROOT / linked[2] / "pyproject.toml").read_text()
            assert f'name = "{linked[1]}"' in declared
        plain = re.sub(r"\\(.)", r"\1", summary)
        stated.add((kind, name.strip("`"), linked[1] if linked else distribution, plain))
    projects = [tomllib.loads(p.read_text()) for p in ROOT.glob("plugins/*/*/pyproject.toml")]
    own = {"pppml-core", *(p["project"]["name"] for p in projects)}
    found = {(r["kind"], r["name"], r["distribution"], r["summary"]) for r in pppml_core.plugins() if r["distribution"] in own}
    assert stated == found


def test_exit_codes():
    stated = {int(code) for code in re.findall(r"^\| (\d) \|", README, flags=re.MULTILINE)}
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, PppmlError)]
    assert stated == {0, *(c.exit_code for c in classes)}


def test_commands_and_make_targets_exist(lines):
    known = cli.main.list_commands(Context(cli.main))
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command in re.findall(r"`pppml ([a-z-]+)", text) + [line.split()[1] for line in lines(text) if line.startswith("pppml ")]:
            assert command in known, f"{page.name}: pppml {command}"
        for target in re.findall(r"`make ([a-z-]+)", text) + [line.split()[1] for line in lines(text) if line.startswith("make ")]:
            assert target in targets, f"{page.name}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link
    for path in re.findall(r"`((?:pppml_core|plugins|docs|tests|examples|scripts)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))
    assert linked == {p.name for p in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_pictures_have_a_text():
    for page in PAGES:
        for alt, _ in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            assert len(alt) > 40, page
    drawing = (ROOT / "docs" / "images" / "round.svg").read_text(encoding="utf-8")
    assert "<title" in drawing
    assert "prefers-color-scheme: dark" in drawing


# -- what is printed, done -------------------------------------------------------------------------------------------------------------


def test_python(blocks, tmp_path, monkeypatch, capsys):
    (code,) = blocks(README, "python")
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", images=np.zeros((2, 8, 8), np.float32))
    known = {}
    exec(compile(code, "README.md", "exec"), known)
    assert "The server sees every update" in capsys.readouterr().out
    assert len(known["run"].metrics) == 3 * 3 + 3, "three rounds and the test, at three sites"
    assert len(known["arms"].points) == 6
    assert sum(p.numel() for p in known["net"].parameters()) > 1000
    assert Path("compare.html").exists()
    assert Path("runs/tiny/report.html").exists()


def test_a_run_of_your_own(blocks, lines, pppml, tmp_path):
    """The commands, with a task that takes no time and one seed; and the plan of the config as it stands there."""
    import nibabel

    section = README.split("## A run of your own")[1].split("\n## ")[0]
    commands = [line.replace("1..3", "1..1") for line in lines(section)]
    assert [line.split()[1] for line in commands] == ["plan", "run", "run", "report", "sweep", "predict"]
    (text,) = blocks(section, "yaml")
    (tmp_path / "config.yaml").write_text(text.replace("task: lung-lesions", "task: {use: tiny, kind: segmentation}").replace("10", "2"))
    volume = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    pppml(tmp_path, *commands)
    assert (tmp_path / "compare.html").exists()
    assert len(list((tmp_path / "sweeps" / "config").glob("*/result.json"))) == 2
    (mask,) = (tmp_path / "masks").iterdir()
    assert nibabel.load(mask).shape == (8, 8, 3)

    need_plugins()
    (tmp_path / "as_printed.yaml").write_text(text)
    (plan,) = pppml(tmp_path, "pppml plan as_printed.yaml --json")
    assert '"misfits": []' in plan


def test_your_own_data(blocks, lines, pppml, tmp_path):
    need_plugins()
    section = README.split("## Your own data")[1].split("\n## ")[0]
    shutil.copytree(ROOT / "examples" / "configs", tmp_path / "examples" / "configs")
    pictures(tmp_path / "my_images")
    slices(tmp_path / "slices.npz")
    slices(tmp_path / "cells.npz", "labels", each=60)
    card, *_ = pppml(tmp_path, *(f"{line} --set run.rounds=2" for line in lines(section)))
    assert "hospital_b" in card
    assert (tmp_path / "samples.png").exists()
    assert (tmp_path / "runs" / "my-images" / "report.html").exists()

    configs = blocks(section, "yaml")
    with_files = [text for text in configs if ".npz" in text]
    assert len(configs) == 3
    planned = []
    for i, text in enumerate(with_files):
        (tmp_path / f"npz{i}.yaml").write_text(text)
        planned.append(json.loads(pppml(tmp_path, f"pppml plan npz{i}.yaml --json")[0]))
    assert [len(plan["sites"]) for plan in planned] == [3, 5]
    assert [plan["misfits"] for plan in planned] == [[], []]
    # The volumes are the plugin's own tests' concern; here, that the config is one.
    (volumes,) = set(configs) - set(with_files)
    assert pppml_core.Experiment(volumes).config.task.source == "ct"


def test_examples(lines, pppml, tmp_path):
    """Every command of examples/README.md, with fewer rounds; every config is named there and planned."""
    need_plugins()
    shutil.copytree(ROOT / "examples" / "configs", tmp_path / "examples" / "configs")
    slices(tmp_path / "slices.npz")
    slices(tmp_path / "cells.npz", "labels")
    pictures(tmp_path / "my_images")
    commands = lines(EXAMPLES)
    assert [line.split()[1] for line in commands] == ["plan", "run", "run", "run", "report"]
    short = " --set run.rounds=1 --set engine.workers=1"
    pppml(tmp_path, *(line + short if " run " in line else line for line in commands))
    assert (tmp_path / "compare.html").exists()

    configs = {path.name for path in (ROOT / "examples" / "configs").iterdir()}
    assert configs == set(re.findall(r"\(configs/([\w.]+)\)", EXAMPLES))
    data = {"covid_ct.yaml": "slices.npz", "blood_cells_iid.yaml": "cells.npz", "my_images.yaml": "my_images"}
    planned = [f"pppml plan examples/configs/{name} --set task.path={path} --json" for name, path in data.items()]
    for shown in pppml(tmp_path, *planned):
        assert '"misfits": []' in shown


@pytest.mark.parametrize("name", ["covid_ct.yaml", "blood_cells_iid.yaml", "my_images.yaml"])
def test_an_example_without_its_data_says_what_to_give(name, pppml, tmp_path):
    need_plugins()
    with pytest.raises((errors.ConfigError, errors.DataError, errors.PlanRefused)) as refused:
        pppml(tmp_path, f"pppml plan {ROOT / 'examples' / 'configs' / name}")
    assert refused.value.exit_code == 2
    assert re.search("path|no such file", str(refused.value))


def test_installing_what_you_need(lines, tmp_path):
    """The packages of the README's pip line, built and installed into a folder: their names and entry points."""
    (line,) = [line for line in lines(README) if line.startswith("pip install .")]
    folders = line.split()[2:]
    names = {re.search(r'^name = "(.*)"', (ROOT / folder / "pyproject.toml").read_text(), re.MULTILINE)[1] for folder in folders}
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(tmp_path), *(str(ROOT / folder) for folder in folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    installed = {d.name: d for d in importlib.metadata.distributions(path=[str(tmp_path)])}
    assert set(installed) == names
    assert all([e for e in d.entry_points if e.group == "pppml"] for d in installed.values())

"""examples/notebooks/first-steps.ipynb runs from top to bottom, shows what it says, and is committed without outputs."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "notebooks" / "first-steps.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(FILE, as_version=4)


@pytest.fixture(scope="module")
def executed(committed, tmp_path_factory):
    """The folder it ran in, and what each cell that ends in a value showed, by that last line."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("OMP_NUM_THREADS", "1")
        resources = {"metadata": {"path": str(folder)}}
        done = NotebookClient(nbformat.from_dict(committed), timeout=120, kernel_name="python3", resources=resources).execute()
    shown = {}
    for cell in done.cells:
        values = [o["data"] for o in cell.get("outputs", []) if o.output_type == "execute_result"]
        if values:
            shown[cell.source.splitlines()[-1]] = values[0]
        if cell.source.endswith(("exp.data()", "exp.plan()")):
            assert len(cell.outputs) == 1, "shown once"
    return folder, shown


def test_the_committed_file_is_valid_and_has_no_outputs(committed):
    nbformat.validate(committed)
    for cell in committed.cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_it_shows_tables(executed):
    _, shown = executed
    assert "Tiny squares" in shown["exp.data()"]["text/html"]
    assert "The server sees every update" in shown["exp.plan()"]["text/html"]
    for last in ("run", "run.metrics", "alone", "pooled", 'run.predict("runs/first-steps/new.npz")'):
        assert "<table" in shown[last]["text/html"], last


def test_what_it_shows_is_right(executed):
    folder, shown = executed
    (curve,) = (value["text/plain"] for last, value in shown.items() if last.startswith('[row["accuracy"]'))
    assert len(re.findall(r"[\d.]+", curve)) == 12, "a value a round"
    # The three images that the notebook draws show places 0, 1 and 2.
    predicted = re.findall(r"place_\d", shown['run.predict("runs/first-steps/new.npz")']["text/html"])
    assert predicted == ["place_0", "place_1", "place_2"]
    means = {arm: float(re.search(rf"\| {arm} \| \w+ \| ([\d.]+)", shown[cell]["text/plain"])[1]) for arm, cell in ARMS.items()}
    assert means["local-only"] < means["fedavg"] < means["true"], f"the comparison shows nothing: {means}"
    assert shown['again.result["model_sha256"] == run.result["model_sha256"]']["text/plain"] == "True"
    written = folder / "runs" / "first-steps"
    assert (written / "compare.html").stat().st_size > 10_000
    assert (written / "fedavg" / "report.html").exists()


ARMS = {"fedavg": "alone", "local-only": "alone", "true": "pooled"}


def test_the_way_to_chest_ct_is_a_plan(committed):
    """The last section's code is not run, but its experiment must exist."""
    pytest.importorskip("pppml_lung_lesions")
    pytest.importorskip("pppml_monai_nets")
    import pppml_core as pppml

    text = committed.cells[-1].source
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    first, *rest = code.splitlines()
    known = {"pppml": pppml}
    exec(first, known)
    assert known["exp"].config.task.use == "lung-lesions"
    assert [line.split("(")[0] for line in rest] == ["run = exp.run", "run.predict"]
    for task in re.findall(r"task=(\{.*?\})", text, flags=re.DOTALL):
        exec(f"pppml.Experiment(task={task})", known)

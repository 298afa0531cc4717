"""A coordinator without any data, and hospitals that have only their own: what is planned, what is refused, what comes out."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest

from pppml_core.api import Experiment
from pppml_core.discovery import from_objects
from pppml_core.errors import ConfigError, DataError, PlanRefused, PolicyRefusal, RunFailed
from pppml_core.federation.checks import own_misfits
from pppml_core.federation.home import init_home
from pppml_core.federation.own_parts import own_parts
from pppml_core.federation.reason import reason_of
from pppml_core.federation.site_file import SITE_FILE, engine_of, load_site_file
from pppml_core.interfaces.engine import Job
from pppml_core.registry import Registry
from pppml_core.testing.residents import ENGINE, acquaint
from pppml_core.wire.messages import SERVER

pytest.importorskip("pppml_image_set", reason="the hospitals' data are folders of images")
Image = pytest.importorskip("PIL.Image")

#: images of each class: no hospital has as many as another, and one has no sick patient.
HOSPITALS = {"clinic_a": (10, 10), "clinic_b": (16, 0), "clinic_c": (6, 6)}
ASKED = {"use": "image-set", "kind": "classification", "channels": 1, "size": [16, 16], "classes": ["normal", "sick"]}
RUN = {"model": "tiny-net", "run": {"rounds": 2, "seed": 3}, "reporters": ["jsonl"]}


@pytest.fixture(scope="session")
def components() -> Registry:
    """Everything installed, and the smallest engine for real sites."""
    return Registry((*Registry.discover().offers, *from_objects([ENGINE])))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """``all/``: every hospital's images at one place; ``CLINIC/CLINIC/``: those of one on its own disk."""
    root, generator = tmp_path_factory.mktemp("disks"), np.random.default_rng(0)
    for number, (clinic, counts) in enumerate(HOSPITALS.items()):
        for kind, count in enumerate(counts):
            for i in range(count):
                pixels = generator.normal(90 + 60 * kind + 10 * number, 20, (16, 16)).clip(0, 255).astype(np.uint8)
                for place in ("all", clinic):
                    path = root / place / clinic / ASKED["classes"][kind] / f"p{i // 2}__{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="session")
def together(folders, components, tmp_path_factory):
    """The run with all data at one place."""
    experiment = Experiment(task={**ASKED, "path": str(folders / "all")}, registry=components, **RUN)
    return experiment.run(tmp_path_factory.mktemp("together") / "run", report=False)


@pytest.fixture(scope="session")
def sizes(together):
    """What each hospital has announced."""
    counts = {row["slug"]: row["train"] for row in together._plan.sites}
    assert list(counts) == list(HOSPITALS)
    assert len(set(counts.values())) > 1
    return counts


@pytest.fixture
def homes(tmp_path, folders):
    """A home for each, that says where its own data are."""
    acquaint(tmp_path / "homes", (*HOSPITALS, SERVER))
    for clinic in HOSPITALS:
        say(tmp_path / "homes" / clinic, f"data: {folders / clinic}")
    return tmp_path / "homes"


@pytest.fixture
def federation(components, sizes, homes):
    """The coordinator's experiment; it has no data."""

    def make(engine=None, **sections):
        engine = {"use": "residents", "homes": str(homes)} if engine is None else engine
        return Experiment(registry=components, **{"task": ASKED, "sites": sizes, "engine": engine, **RUN, **sections})

    return make


def say(home, text):
    (home / SITE_FILE).write_text(text + "\n")


def refusal(experiment, folder):
    with pytest.raises(RunFailed, match="not every site joins") as refused:
        experiment.run(folder, report=False)
    return str(refused.value)


# -- what comes out -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["residents", "processes"])
def test_the_model_is_that_of_all_data_at_one_place(engine, federation, together, homes, tmp_path):
    run = federation({"use": engine, "homes": str(homes)}).run(tmp_path / "run")
    assert run.result["model_sha256"] == together.result["model_sha256"]
    assert run.result["metrics"] == together.result["metrics"]
    assert run.result["survivors"] == {"1": list(HOSPITALS), "2": list(HOSPITALS)}
    assert (run.folder / "report.html").stat().st_size > 1000
    assert not (run.folder / "examples.npz").exists()
    if engine == "residents":
        _nor_afterwards(run)


def _nor_afterwards(run):
    """What is done with a finished run and needs what is elsewhere says so."""
    assert run.model().training is False
    with pytest.raises(ConfigError, match="the model of clinic_b is at clinic_b"):
        run.model("clinic_b")
    with pytest.raises(DataError, match="the data of clinic_b are at clinic_b"):
        run.adapt("clinic_b")
    if [c for c in Registry.discover().components("attack") if c.name == "gallery"]:
        with pytest.raises(DataError, match=r"the data of clinic_. are at clinic_."):
            run.attack("gallery")


def test_nothing_that_the_coordinator_writes_names_a_place_of_a_site(federation, folders, tmp_path):
    run = federation().run(tmp_path / "run")
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if str(folders).encode() in path.read_bytes()]


def test_the_sites_have_the_order_of_the_config_and_not_of_a_message(federation, components, sizes, homes):
    order = ("clinic_c", "clinic_a", "clinic_b")
    plan = federation(sites={clinic: sizes[clinic] for clinic in order})._plan()
    assert tuple(plan.sizes) == order == tuple(site.slug for site in plan.assembly.task.sites())
    arrived = {**plan.config.to_dict(), "sites": dict(sorted(sizes.items()))}
    job = Job(bytes(16), arrived, homes, order, sizes, {}, homes)
    assert tuple(site.slug for site in own_parts(job, "clinic_a", components).task.sites()) == order


# -- the coordinator ----------------------------------------------------------------------------------------------------------------------


def test_a_plan_without_data_has_all_but_what_only_data_tell(federation, together, sizes):
    with_data, without = together._plan, federation()._plan()
    assert without.misfits == []
    assert without.sizes == sizes
    for part in ("bytes", "guarantees", "privacy", "training", "model", "stages", "headline", "max_weight"):
        assert getattr(without, part) == getattr(with_data, part), part
    assert without.task == with_data.task
    assert [set(site) for site in without.sites] == [{"slug", "name", "train"}] * 3
    assert any("the data are elsewhere" in text for text in without.warnings)
    assert "at the site" in str(federation().plan())


def test_a_batch_is_timed_on_noise(federation):
    assert federation().plan(measure=True).to_dict()["measured"]["one batch"] > 0


def test_the_coordinator_has_no_data(federation, tmp_path):
    with pytest.raises(DataError, match="none of them here"):
        federation().data()
    parts = federation()._plan().assembly
    with pytest.raises(DataError, match="the data of clinic_a are at clinic_a"):
        parts.load("clinic_a")
    with pytest.raises(DataError, match="no site 'clinic_d'"):
        parts.load("clinic_d")


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_an_engine_whose_sites_are_all_here_is_refused(engine, federation, tmp_path):
    with pytest.raises(PlanRefused, match=f"engine {engine} runs every site here"):
        federation(engine).run(tmp_path / "run")


def test_an_attack_that_is_scored_on_images_is_refused(federation):
    if not [c for c in federation().registry.components("attack") if c.name == "gallery"]:
        pytest.skip("needs the attack gallery")
    misfits = federation(attacks=["gallery"])._plan().misfits
    assert any("images of the watched site" in text for text in misfits)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"task": {**ASKED, "pool": True}}, "task.pool"),
        ({"task": {**ASKED, "leave_out": ["clinic_a"]}}, "task.leave_out"),
        ({"sites": {}}, "at least one"),
        ({"sites": {"clinic_a": 3, "server": 4}}, "server"),
        ({"sites": {"Clinic A": 3}}, "Clinic A"),
        ({"sites": {"clinic_a": 0}}, "at least 1"),
    ],
)
def test_sites_that_cannot_be(sections, said, federation):
    with pytest.raises(ConfigError, match=said):
        federation(**sections)


# -- the sites ----------------------------------------------------------------------------------------------------------------------------


def test_another_number_of_examples_than_announced_is_refused_at_the_site(federation, sizes, tmp_path):
    told = refusal(federation(sites={**sizes, "clinic_b": sizes["clinic_b"] + 1}), tmp_path / "run")
    counted = f"the run counts on {sizes['clinic_b'] + 1} training examples of this site, which has {sizes['clinic_b']}"
    assert "clinic_b: it refused: " in told
    assert counted in told
    assert "clinic_a" not in told
    with pytest.raises((ConfigError, PolicyRefusal), match="the run counts on"):
        federation({"use": "processes", "homes": str(tmp_path / "homes")}, sites={**sizes, "clinic_b": 1}).run(tmp_path / "other")


@pytest.mark.parametrize(
    ("data", "known_here"),
    [("nowhere", "no such file"), ("clinic_a/clinic_a/normal", "no class folder|no image file"), ("two", "none is named clinic_a")],
)
def test_what_is_wrong_with_data_is_said_at_the_site_only(data, known_here, federation, folders, homes, tmp_path, caplog):
    for other in ("x", "y"):
        for kind in ASKED["classes"]:
            for i in range(4):
                path = tmp_path / "two" / other / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((16, 16), i, np.uint8)).save(path)
    place = tmp_path / "two" if data == "two" else folders / data
    say(homes / "clinic_a", f"data: {place}")
    with caplog.at_level(logging.ERROR, "pppml.site"):
        told = refusal(federation(), tmp_path / "run")
    assert "clinic_a: it failed: its data cannot be used as they are" in told
    assert "clinic_b" not in told
    assert place.name not in told
    assert re.search(known_here, caplog.text), caplog.text
    if data == "nowhere":
        assert str(place) in caplog.text


def test_a_site_that_has_not_said_where_its_data_are(federation, homes, tmp_path, caplog):
    say(homes / "clinic_a", "")
    told = refusal(federation(task={**ASKED, "path": "at-the-sites"}), tmp_path / "run")
    assert "site.yaml: the run leaves it to each site to say where its data are" in told
    assert str(homes) not in told
    assert str(homes / "clinic_a" / "site.yaml") in caplog.text


def test_a_site_does_not_read_what_the_coordinator_names(federation, together, folders, tmp_path):
    """The path of the invitation is another's: with data of its own, a site never looks there."""
    run = federation(task={**ASKED, "path": str(folders / "all")}).run(tmp_path / "run", report=False)
    assert run.result["model_sha256"] == together.result["model_sha256"]


def test_own_settings_of_the_task_may_not_make_it_another_task(federation, folders, homes, tmp_path):
    say(homes / "clinic_a", f"data: {folders / 'clinic_a'}\ntask: {{size: [24, 24]}}")
    told = refusal(federation(), tmp_path / "run")
    assert "the announced images are not those of this site's configuration" in told


def test_own_settings_of_the_task(federation, components, folders, homes):
    plan = federation()._plan()
    job = Job(bytes(16), plan.config.to_dict(), homes, tuple(plan.sizes), plan.sizes, {}, homes)
    say(homes / "clinic_a", f"data: {folders / 'clinic_a'}\ntask: {{window: [0, 128]}}")
    before, after = (own_parts(job, clinic, components) for clinic in ("clinic_c", "clinic_a"))
    assert before.task.inner.config.window is None
    assert after.task.inner.config.window == (0, 128)
    say(homes / "clinic_a", "task: {windw: [0, 128]}")
    with pytest.raises(ConfigError, match=r"site.yaml:1: task.windw.*did you mean 'window'") as refused:
        own_parts(job, "clinic_a", components)
    assert str(homes) in str(refused.value)


@pytest.mark.parametrize("place", ["/etc/labels.csv", "~/labels.csv", "../labels.csv", r"C:\labels.csv"])
def test_a_run_names_no_place_on_a_sites_machine(place, federation, components, homes):
    plan = federation()._plan()
    plain = plan.config.to_dict()

    def built(text, own):
        config = {**plain, "task": {**plain["task"], "classes": ["normal", text]}}
        say(homes / "clinic_b", f"data: {homes}\n{own}")
        return own_parts(Job(bytes(16), config, homes, tuple(plan.sizes), plan.sizes, {}, homes), "clinic_b", components)

    with pytest.raises(PolicyRefusal, match=r"task.classes names a place on this machine"):
        built(place, "")
    assert built("labels.csv", "").spec.classes == ("normal", "labels.csv")
    assert built("sick", f"task: {{classes: [normal, '{place}']}}").spec.classes == ("normal", place)


def test_a_site_checks_its_own_data_as_a_plan_would(federation, components, homes):
    plan = federation()._plan()
    parts = own_parts(Job(bytes(16), plan.config.to_dict(), homes, tuple(plan.sizes), plan.sizes, {}, homes), "clinic_a", components)

    def of(unit):
        return own_misfits(parts, "clinic_a", SimpleNamespace(statement=SimpleNamespace(unit=unit)))

    assert of("example") == of("patient") == []
    data = parts.load("clinic_a")
    data.train.groups = np.arange(len(data.train))
    assert of("example") == []
    assert "every example is a group of its own" in of("patient")[0]
    data.train.groups = np.resize(data.test.groups, len(data.train))
    assert "is in train and in test" in of("example")[0]


# -- site.yaml ----------------------------------------------------------------------------------------------------------------------------


def test_a_new_home_says_nothing_of_its_own(tmp_path):
    init_home(tmp_path / "a", "clinic_a")
    init_home(tmp_path / "s", SERVER)
    assert load_site_file(tmp_path / "a").model_dump() == {"data": None, "task": {}, "engine": None}
    assert not (tmp_path / "s" / SITE_FILE).exists()
    written = (tmp_path / "a" / SITE_FILE).read_text()
    lines = [line.removeprefix("# ") for line in written.splitlines() if line.startswith(("# data:", "# task:", "# engine:"))]
    say(tmp_path / "a", "\n".join(lines))
    assert load_site_file(tmp_path / "a").model_dump() == {"data": "/data/study", "task": {}, "engine": "nvflare"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\ndaat: x", r"site.yaml:2: daat: unknown setting 'daat'.*did you mean 'data'"),
        ("data: [x]", "site.yaml:1: data: input should be a valid string"),
        ("data: ''", "at least 1 character"),
        ("task:\n  path: x", r"site.yaml:2: task.path: 'path' is no setting.*write it as `data`"),
        ("task: {use: tiny}", "same at every site"),
        ("threads: 4", "known here: data, task, engine"),
    ],
)
def test_a_site_file_that_cannot_be(text, said, tmp_path):
    say(tmp_path, text)
    with pytest.raises(ConfigError, match=said):
        load_site_file(tmp_path)


def test_a_site_file_under_another_name_is_told(tmp_path):
    (tmp_path / "site.yml").write_text("data: x\n")
    with pytest.raises(ConfigError, match="rename it"):
        load_site_file(tmp_path)


def test_the_engine_of_a_site(components, tmp_path):
    with pytest.raises(ConfigError, match="no engine is named"):
        engine_of(tmp_path, components)
    say(tmp_path, "data: x\nengine:\n  use: residents\n  homes: here")
    assert engine_of(tmp_path, components).model_dump() == {"use": "residents", "homes": "here"}
    say(tmp_path, "data: x\nengine:\n  use: residents\n  hmes: here")
    with pytest.raises(ConfigError, match=r"site.yaml:4: engine.hmes"):
        engine_of(tmp_path, components)


# -- what others are told -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("must be 3", place="/srv/My Data/site.yaml:4: task.size", hint="1/2"), "site.yaml:4: task.size: must be 3 (1/2)"),
        (ConfigError("[Errno 2] No such file: '/srv/a b/c.png'"), "[Errno 2] No such file: ..."),
        (ConfigError("weights /srv/w.safetensors cannot be read", hint="look at ~/pppml"), "weights ... cannot be read (look at ...)"),
        (ConfigError(r"E:\scans\x\y.npz is damaged", place=r"D:\data\site.yaml"), "site.yaml: ... is damaged"),
        (PolicyRefusal("min_cohort: 2 sites announced, at least 3 required"), "min_cohort: 2 sites announced, at least 3 required"),
        (DataError("p07 is in train and in test", place="clinic_a"), "its data cannot be used as they are; its own log says why"),
        (OSError(28, "No space left on device", "/srv/x"), "an error of its own (OSError); its own log says more"),
        (KeyError("p07"), "an error of its own (KeyError); its own log says more"),
    ],
)
def test_a_reason_tells_nothing_of_the_machine(error, told, caplog):
    with caplog.at_level(logging.ERROR, "pppml.site"):
        assert reason_of(error) == {"reason": told}
    assert (str(error) in caplog.text) == (not isinstance(error, PolicyRefusal))
    assert "..." not in reason_of(error, simulated=True)["reason"]

"""Event files, read back with TensorBoard's own reader."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import pppml_core as pppml
from pppml_core.interfaces.reporter import Reporter
from pppml_core.testing import PluginSuite
from pppml_tensorboard.config import TensorBoardConfig
from pppml_tensorboard.reporter import TensorBoard

TINY = {"task": {"use": "tiny", "sites": 3, "examples": 20}, "training": {"steps": 1, "batch_size": 4}}


class Stop(Reporter):
    """Ends the run at one event, once; as a key pressed, or as a process that dies."""

    def __init__(self, event, round, error=KeyboardInterrupt):
        self.at, self.error = (event, round), error

    def handle(self, event):
        if (event["event"], event.get("round")) == self.at:
            self.at = None
            raise self.error


def experiment(*reporters, rounds=3, **more):
    return pppml.Experiment(**TINY, run={"rounds": rounds, "seed": 1}, reporters=["jsonl", *reporters], **more)


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def steps(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return experiment("tensorboard").run(tmp_path_factory.mktemp("tb") / "r", report=False)


def test_every_row_of_the_metrics_is_a_point(run):
    found = read(run.folder / "tensorboard")
    validation = [row for row in run.metrics if row["split"] == "validation"]
    assert len(validation) == 9
    for row in validation:
        name = f"accuracy/validation/{row['weights']}/{row['site']}"
        assert dict(steps(found, name))[row["round"]] == pytest.approx(row["accuracy"])
        assert len(steps(found, name)) == 3
    for site, scores in run.result["metrics"]["global"]["sites"].items():
        assert steps(found, f"accuracy/test/global/{site}") == [(run.result["selected_round"], pytest.approx(scores["accuracy"]))]


def test_bytes_seconds_and_survivors(run):
    found = read(run.folder / "tensorboard")
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    for number in (1, 2, 3):
        (stage,) = [e for e in events if e["event"] == "stage" and (e["stage"], e["round"]) == ("contribute", number)]
        assert dict(steps(found, "bytes/up/contribute"))[number] == stage["received"]
        assert dict(steps(found, "bytes/down/contribute"))[number] == stage["sent"]
        assert dict(steps(found, "seconds/contribute"))[number] == pytest.approx(stage["seconds"])
    assert steps(found, "round/survivors") == [(1, 3.0), (2, 3.0), (3, 3.0)]
    assert [step for step, _ in steps(found, "seconds/checkpoint")] == [1, 2, 3]
    assert steps(found, "total/bytes/up") == [(3, run.result["bytes"]["up"])]


def test_config_and_scores_for_comparing_runs(run):
    found = PluginAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "batch_size: 4" in text
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["run.rounds"].number_value == 3
    assert settings["task.use"].string_value == "tiny"
    content = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = [m.name.tag for m in plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos]
    assert "accuracy/test/global/mean-over-sites" in metrics
    assert set(metrics) <= set(found.Tags()["tensors"])  # what a scalar is to this reader


@pytest.mark.parametrize(
    ("event", "round"),
    [
        ("round-started", 1),
        ("stage-started", 2),  # in the middle of a round
        ("round-finished", 2),  # told, but its checkpoint is not written: it is held again
        ("round-started", 3),  # between two rounds
    ],
)
def test_a_resumed_run_goes_on_in_the_same_curves(event, round, run, tmp_path):
    made = experiment("tensorboard", Stop(event, round))
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path / "r", report=False)
    resumed = made.run(tmp_path / "r", resume=True, report=False)
    found, whole = read(tmp_path / "r" / "tensorboard"), read(run.folder / "tensorboard")
    assert len(list((tmp_path / "r" / "tensorboard").iterdir())) == 2
    assert set(found.Tags()["scalars"]) == set(whole.Tags()["scalars"])
    for tag in whole.Tags()["scalars"]:
        assert [step for step, _ in steps(found, tag)] == [step for step, _ in steps(whole, tag)], tag
    name = "accuracy/validation/global/site_2"
    assert steps(found, name) == steps(whole, name)
    assert resumed.result["model_sha256"] == run.result["model_sha256"]
    assert len(found.Tensors("config/text_summary")) == 1


def test_one_folder_for_many_runs(tmp_path):
    experiment({"use": "tensorboard", "folder": str(tmp_path / "all")}, rounds=1).run(tmp_path / "a", report=False)
    assert steps(read(tmp_path / "all" / "a"), "round/survivors") == [(1, 3.0)]
    assert not (tmp_path / "a" / "tensorboard").exists()


def test_epsilon_is_a_curve_and_what_is_infinite_is_left_out(tmp_path):
    reporter = TensorBoard(TensorBoardConfig())
    (tmp_path / "config.resolved.yaml").write_text("run: {rounds: 2}\n")
    reporter.open(tmp_path)
    reporter.handle({"event": "run-started", "first_round": 1, "headline": "", "name": "r"})
    for number, epsilon in ((1, 0.5), (2, "inf")):
        reporter.handle({"event": "round-finished", "round": number, "seconds": 1.0, "survivors": [], "epsilon": epsilon})
    reporter.handle({"event": "warning", "text": "site_1 <b>sent</b> no scores", "round": 2})
    reporter.handle({"event": "an event of a later version"})
    reporter.close()
    reporter.close()
    found = read(tmp_path / "tensorboard")
    assert steps(found, "privacy/epsilon") == [(1, 0.5)]
    assert len(found.Tensors("warnings/text_summary")) == 1


def test_a_full_disk_does_not_stop_the_run(tmp_path, monkeypatch):
    made = experiment("tensorboard", rounds=2)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pppml_tensorboard.reporter.SummaryWriter.add_scalar", full)
    run = made.run(tmp_path / "r", report=False)
    assert run.result["rounds"] == 2
    events = [json.loads(line) for line in (tmp_path / "r" / "events.jsonl").read_text().splitlines()]
    (text,) = [e["text"] for e in events if e["event"] == "warning" and "reporter" in e["text"]]
    assert text == "reporter tensorboard failed and hears no more of this run, which goes on: OSError: [Errno 28] No space left on device"


class TestPlugin(PluginSuite):
    plugin = "pppml_tensorboard.plugin"

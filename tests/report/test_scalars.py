"""The numbers that trackers are given: once a round, at its step, and none that is undefined."""

import math

from pppml_core.report.scalars import RoundScalars, flat_settings

ROWS = [
    {"round": 1, "site": "a", "split": "validation", "weights": "global", "dice": 0.5, "hd95": math.nan},
    {"round": 1, "site": "b", "split": "validation", "weights": "global", "dice": 0.7, "hd95": 3.0},
    {"round": 1, "site": "a", "split": "validation", "weights": "personalized", "dice": 0.9, "hd95": None},
]
ATTEMPT = [
    {"event": "round-started", "round": 1, "attempt": 1, "cohort": ["a", "b"]},
    {"event": "stage-started", "round": 1, "stage": "contribute", "asked": ["a", "b"]},
    {"event": "site-lost", "round": 1, "stage": "contribute", "site": "b", "reason": "no reply came"},
    {"event": "stage", "round": 1, "stage": "contribute", "sent": 10, "received": 100, "seconds": 2.0},
]
DONE = {"event": "round-finished", "round": 1, "seconds": 5.0, "survivors": ["a"], "training": {"loss": 0.25}, "epsilon": 1.5}
RESULT = {
    "selected_round": 2,
    "bytes": {"up": 7, "down": 8},
    "seconds": {"total": 9.0, "by_stage": {"train": 4.0}},
    "metrics": {"global": {"mean": {"dice": 0.8}, "sites": {"a": {"dice": 0.8, "hd95": None}}}, "personalized": {"mean": {}, "sites": {}}},
}


def take(scalars, *events):
    return [{(s.name, s.step): s.value for s in scalars.take(event)} for event in events]


def test_a_round_is_told_once_when_it_is_finished():
    *before, told = take(RoundScalars(), *ATTEMPT, *ATTEMPT, {"event": "metrics", "round": 1, "rows": ROWS}, DONE)
    assert not any(before)
    assert told == {
        ("round/seconds", 1): 5.0,
        ("round/survivors", 1): 1.0,
        ("round/attempts", 1): 2.0,
        ("round/lost", 1): 2.0,
        ("privacy/epsilon", 1): 1.5,
        ("bytes/down/contribute", 1): 20.0,
        ("bytes/up/contribute", 1): 200.0,
        ("seconds/contribute", 1): 4.0,
        ("training/loss", 1): 0.25,
        ("dice/validation/global/a", 1): 0.5,
        ("dice/validation/global/b", 1): 0.7,
        ("dice/validation/global/mean-over-sites", 1): 0.6,
        ("hd95/validation/global/b", 1): 3.0,
        ("dice/validation/personalized/a", 1): 0.9,
    }


def test_what_was_left_of_a_round_is_not_told_with_the_next():
    started = {"event": "run-started", "first_round": 1}
    scalars = RoundScalars()
    assert not any(take(scalars, *ATTEMPT, started))
    (told,) = take(scalars, {**DONE, "epsilon": "inf", "training": {}})
    assert told == {("round/seconds", 1): 5.0, ("round/survivors", 1): 1.0, ("round/lost", 1): 0.0}
    (told,) = take(scalars, {**DONE, "round": 2, "epsilon": None, "training": None})
    assert set(told) == {("round/seconds", 2), ("round/survivors", 2), ("round/lost", 2)}
    (told,) = take(scalars, {"event": "stage", "round": 2, "stage": "checkpoint", "sent": 0, "received": 0, "seconds": 0.5})
    assert told == {("seconds/checkpoint", 2): 0.5}


def test_the_result_is_told_at_the_selected_round():
    tested = {"event": "metrics", "round": 2, "rows": [{**ROWS[0], "round": 2, "split": "test"}]}
    nothing, told = take(RoundScalars(), tested, {"event": "run-finished", "result": RESULT})
    assert nothing == {}
    assert told == {
        ("total/bytes/up", 2): 7.0,
        ("total/bytes/down", 2): 8.0,
        ("total/seconds/train", 2): 4.0,
        ("total/seconds/all", 2): 9.0,
        ("dice/test/global/mean-over-sites", 2): 0.8,
        ("dice/test/global/a", 2): 0.8,
    }


def test_events_of_a_later_version_are_passed_over():
    assert take(RoundScalars(), {"event": "something new"}, {}) == [{}, {}]


def test_settings_by_path():
    config = {"run": {"name": "a", "stop": None, "rounds": 2}, "task": {"use": "tiny", "size": [8, 8]}, "pool": False}
    assert flat_settings(config) == {"run.name": "a", "run.rounds": 2, "task.use": "tiny", "task.size": "[8, 8]", "pool": False}

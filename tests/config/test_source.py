"""YAML text to data with lines, and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.config import load_yaml
from pppml_core.config.source import dotted, dump_yaml
from pppml_core.errors import ConfigError

SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(max_size=12)
# What a naive reader gets wrong most easily.
TRAPS = st.sampled_from(
    ["no", "yes", "1e-3", "0o7", "010", "1:30", "2024-01-01", "~", "null", "true", "<<", "=", ".5", "-", "#", "a: b", "é", "\n"]
)
DATA = st.recursive(
    SCALARS | TRAPS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | TRAPS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=6) | TRAPS, DATA, max_size=4))
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_read_back(data):
    text = dump_yaml(data)
    assert load_yaml(f"# head\n{text}").data == data


@given(st.text(max_size=60).map(lambda text: text + "\n"))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text):
    try:
        data = load_yaml(text).data
    except ConfigError:
        return
    assert isinstance(data, dict)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1", 1),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("-.inf", float("-inf")),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = load_yaml(f"a: {text}\n").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_lines_of_every_entry():
    document = load_yaml("task:\n  use: a\n\nattacks:\n  - use: x\n  -\n    use: y\n    rounds: [1,\n      2]\n")
    assert document.place(("task", "use")) == "text:2: task.use"
    assert document.place(("attacks", 0, "use")) == "text:5: attacks[0].use"
    assert document.place(("attacks", 1, "rounds", 1)) == "text:9: attacks[1].rounds[1]"
    # An entry that is not there has the line of what should hold it.
    assert document.place(("attacks", 1, "vantage")) == "text:7: attacks[1].vantage"
    assert document.place(("model",)) == "text:1: model"


def test_anchors_and_merges():
    document = load_yaml("a: &a {x: 1, y: {z: 2}}\nb:\n  <<: *a\n  x: 3\nc: {<<: [*a, {w: 4, x: 5}]}\nd: *a\n")
    assert document.data["b"] == {"x": 3, "y": {"z": 2}}
    assert document.data["c"] == {"x": 1, "y": {"z": 2}, "w": 4}
    assert document.data["d"] == document.data["a"]
    assert document.places["b", "x"] == "text:4"
    # A repeated value is a value of its own.
    document.data["d"]["y"]["z"] = 0
    assert document.data["a"]["y"]["z"] == 2


def test_a_file_or_a_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes("\ufefftask: ä\n".encode())
    assert load_yaml(tmp_path / "c.yaml").data == load_yaml(str(tmp_path / "c.yaml")).data == load_yaml("task: ä").data == {"task": "ä"}


def test_dotted():
    assert dotted(("a", 0, "b", 1, 2)) == "a[0].b[1][2]"
    assert dotted(()) == ""

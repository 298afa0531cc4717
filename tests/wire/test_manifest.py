import json

import numpy as np
import pytest

from pppml_core.errors import UndeclaredField, WireError
from pppml_core.interfaces import aggregation
from pppml_core.wire.codec import Encoded
from pppml_core.wire.manifest import Manifest, WireField

MANIFEST = Manifest(
    [
        WireField("contribute", "values", "int32", (10,), 40, "masked", "fixed-point update"),
        WireField("contribute", "weight", "float", (), 8, "in the clear", "number of examples over the largest"),
        WireField("share", "shares.*", "bytes", (), 64, "encrypted to each peer", "shares of the mask key"),
        WireField("share", "keys.public.*", "uint8", (None, 2), 100, "in the clear", "public keys"),
        WireField("share", "log", "list", (), 40, "in the clear", "notes"),
        WireField("evaluate", "metrics.*", "float", (), 8, "in the clear", "metrics of the site"),
        WireField("evaluate", "metrics.examples", "int", (), 8, "in the clear", "number of examples"),
        WireField("evaluate", "free", "map", (), 50, "in the clear", "anything"),
        WireField("evaluate", "text", "str", (), 4, "in the clear", "a word"),
        WireField("evaluate", "done", "bool", (), 8, "in the clear", "whether done"),
    ]
)


@pytest.mark.parametrize(
    ("stage", "body"),
    [
        ("contribute", {"values": np.zeros(10, np.int32), "weight": 0.5}),
        ("contribute", {"values": np.zeros(10, ">i4").astype("<i4"), "weight": np.float32(1)}),
        ("contribute", {}),
        ("anything", {}),
        ("share", {"shares": {"a": bytes(64), "b.c": b""}, "log": [1, "x"]}),
        ("share", {"shares": {}}),
        ("share", {"keys": {"public": {"a": np.zeros((50, 2), np.uint8)}}}),
        ("evaluate", {"metrics": {"dice": float("nan"), "examples": 12}, "free": {"a": [1.0]}, "text": "abcd", "done": True}),
        ("evaluate", {"free": Encoded({"a": 1})}),
    ],
)
def test_declared_bodies_pass(stage, body):
    MANIFEST.check(stage, body)


@pytest.mark.parametrize(
    ("stage", "body", "place", "message", "hint"),
    [
        ("contribute", {"value": 1}, "field 'value'", "of type int would be sent but is not declared", "nearest declared is values"),
        ("contribute", {"zzz": np.zeros(3)}, "field 'zzz'", "an array (float64, shape (3,))", "declared are values, weight"),
        ("contribute", {"values": np.zeros(10, np.int64)}, "field 'values'", "another type", "int32 of 10"),
        ("contribute", {"values": np.zeros(11, np.int32)}, "field 'values'", "another shape", "int32 of 10"),
        ("contribute", {"values": np.zeros((10, 1), np.int32)}, "field 'values'", "another shape", "int32 of 10"),
        ("contribute", {"values": [0] * 10}, "field 'values'", "type list", "int32 of 10"),
        ("contribute", {"weight": 1}, "field 'weight'", "another type", "Weight: float"),
        ("contribute", {"weight": None}, "field 'weight'", "another type", "Weight: float"),
        ("contribute", {"weight": {"a": 0.5}}, "field 'weight'", "another type", "Weight: float"),
        ("contribut", {"values": 1}, "stage 'contribut'", "'values' would be sent", "nearest declared stage is 'contribute'"),
        ("share", {"shares": {"a": bytes(65)}}, "field 'shares.a'", "takes 65 bytes", "at most 64"),
        ("share", {"shares": bytes(3)}, "field 'shares'", "not declared", "nearest declared is shares.*"),
        ("share", {"shares": {"a": {"b": b""}}}, "field 'shares.a'", "another type", "Shares, for each: bytes"),
        ("share", {"shares": {"k" * 129: b""}}, "field 'shares.kkk", "not declared", None),
        ("share", {"keys": {"public": {"a": np.zeros((2, 3), np.uint8)}}}, "field 'keys.public.a'", "another shape", "any x 2"),
        ("share", {"keys": {"public": {"a": np.zeros((51, 2), np.uint8)}}}, "field 'keys.public.a'", "takes 102 bytes", None),
        ("share", {"keys": {"private": {"a": np.zeros((1, 2), np.uint8)}}}, "field 'keys.private'", "not declared", "keys.public.*"),
        ("share", {"log": ["x" * 40]}, "field 'log'", "which is more", "at most 40"),
        ("evaluate", {"metrics": {"examples": 1.0}}, "field 'metrics.examples'", "another type", "int"),
        ("evaluate", {"metrics": {"examples": True}}, "field 'metrics.examples'", "another type", "int"),
        ("evaluate", {"metrics": {"examples": 2**64}}, "field 'metrics.examples'", "takes 9 bytes", "int"),
        ("evaluate", {"free": {"a": np.zeros(20)}}, "field 'free'", "which is more", None),
        ("evaluate", {"text": "äää"}, "field 'text'", "takes 6 bytes", None),
        ("evaluate", {"done": 1}, "field 'done'", "another type", None),
    ],
)
def test_anything_else_is_refused_with_place_reason_and_hint(stage, body, place, message, hint):
    with pytest.raises(UndeclaredField) as caught:
        MANIFEST.check(stage, body)
    assert place in caught.value.place
    assert f"stage {stage!r}" in caught.value.place
    assert message in caught.value.message
    assert hint is None or hint in caught.value.hint


def test_names_with_dots_are_matched_as_one_key_under_a_star():
    fields = [WireField("s", "w.*", "float32", (None,), 40, "in the clear", ""), WireField("s", "a.b", "int", (), 8, "in the clear", "")]
    manifest = Manifest(fields)
    manifest.check("s", {"w": {"conv.0.weight": np.zeros(3, np.float32)}, "a.b": 1})
    manifest.check("s", {"a": {"b": 1}})
    with pytest.raises(UndeclaredField):
        manifest.check("s", {"w": {"conv": {"0": np.zeros(3, np.float32)}}})


def test_an_empty_manifest_lets_nothing_out():
    Manifest([]).check("s", {})
    with pytest.raises(UndeclaredField, match="nothing is declared"):
        Manifest([]).check("s", {"x": None})


def test_a_wrong_manifest_is_refused():
    field = WireField("s", "x", "int32", (), 4, "masked", "")
    with pytest.raises(WireError, match="declared twice"):
        Manifest([field, field])
    with pytest.raises(WireError, match="did you mean 'float32'"):
        Manifest([WireField("s", "x", "flot32", (), 4, "masked", "")])
    for dtype in ("object", "str_", "complex64", ">i4", "i4"):
        with pytest.raises(WireError, match="is no dtype"):
            Manifest([WireField("s", "x", dtype, (), 4, "masked", "")])


def test_to_dict_is_json_with_titles():
    data = json.loads(json.dumps(MANIFEST.to_dict()))
    assert [s["stage"] for s in data["stages"]] == ["contribute", "share", "evaluate"]
    first = data["stages"][0]["fields"][0]
    assert first["title"] == "Values: int32 of 10, at most 40 bytes, masked"
    assert (first["name"], first["shape"], first["max_bytes"], first["says"]) == ("values", [10], 40, "fixed-point update")
    assert sum(len(s["fields"]) for s in data["stages"]) == len(MANIFEST.fields)


def test_the_interface_offers_the_same_class():
    assert aggregation.WireField is WireField

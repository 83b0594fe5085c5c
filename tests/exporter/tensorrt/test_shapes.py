from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from actx.exporter.data import InputSpec
from actx.exporter.errors import UsageError
from actx.exporter.tensorrt.shapes import Profile, ShapeRange, parse_range, parse_ranges, resolve, sizes_seen

IDS = InputSpec("ids", "int64", ("batch", "seq"))
MASK = InputSpec("mask", "int64", ("batch", "seq"))
IMAGE = InputSpec("image", "float32", (4, 3, "height", 224))


def test_a_range_is_three_sizes_or_one() -> None:
    assert parse_range("batch=1:8:32") == ("batch", ShapeRange(1, 8, 32))
    assert parse_range(" x.0=8") == ("x.0", ShapeRange(8, 8, 8))
    assert str(parse_range("n=0:1:2")[1]) == "0:1:2"


@pytest.mark.parametrize(
    "text", ["batch", "batch=", "=1:2:3", "batch=1:2", "batch=1:2:3:4", "batch=a:b:c", "batch=-1:1:2"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no range of a dimension") as error:
        parse_range(text)
    assert "NAME=MIN:OPT:MAX" in error.value.note


@pytest.mark.parametrize("text", ["batch=8:1:32", "batch=1:64:32", "batch=0:0:0", "batch=2147483648"])
def test_sizes_out_of_order_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no range of sizes"):
        parse_range(text)


def test_a_dimension_has_one_range() -> None:
    assert parse_ranges(["a=1:2:3", "b=4"]) == {"a": ShapeRange(1, 2, 3), "b": ShapeRange(4, 4, 4)}
    with pytest.raises(UsageError, match="two ranges"):
        parse_ranges(["a=1:2:3", "a=4"])


def test_stated_ranges_hold_for_every_input_that_has_the_dimension() -> None:
    profile = resolve([IDS, MASK], parse_ranges(["batch=1:4:16", "seq=16:64:128"]))
    assert profile.shapes() == {"ids": ((1, 16), (4, 64), (16, 128)), "mask": ((1, 16), (4, 64), (16, 128))}
    assert profile.notes == ()


def test_defaults_are_told() -> None:
    profile = resolve([IDS])
    assert profile.shapes()["ids"] == ((1, 1), (8, 128), (32, 512))
    assert [note.split("'")[1] for note in profile.notes] == ["batch", "seq"]
    assert all("by default" in note and "--shape" in note for note in profile.notes)


def test_sizes_of_the_data_are_taken_where_none_is_stated() -> None:
    data = [{"ids": np.zeros((8, n), np.int64), "mask": np.zeros((8, n), np.int64)} for n in (16, 40, 40, 90)]
    seen = sizes_seen([IDS, MASK], data)
    assert seen == {"batch": Counter({8: 4}), "seq": Counter({40: 2, 16: 1, 90: 1})}
    profile = resolve([IDS, MASK], {"batch": ShapeRange(2, 2, 2)}, seen)
    assert profile.shapes()["mask"] == ((2, 1), (2, 40), (2, 90))
    assert len(profile.notes) == 1
    assert "as the batches of the data have it" in profile.notes[0]


def test_static_dimensions_stay_as_they_are() -> None:
    profile = resolve([IMAGE], {"height": ShapeRange(112, 224, 448)})
    assert profile.shapes()["image"] == ((4, 3, 112, 224), (4, 3, 224, 224), (4, 3, 448, 224))


@pytest.mark.parametrize("name", ["width", "4", "image"])
def test_a_range_for_what_is_no_dynamic_dimension_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"no dynamic dimension '{name}'") as error:
        resolve([IMAGE], {name: ShapeRange(1, 2, 3)})
    assert "dynamic dimensions: height" in error.value.note


def test_data_must_be_covered() -> None:
    profile = resolve([IDS], parse_ranges(["batch=1:4:8", "seq=2:4:8"]))
    profile.check({"ids": np.zeros((8, 2))})
    with pytest.raises(UsageError, match="does not take 9 for dimension 'batch'") as error:
        profile.check({"ids": np.zeros((9, 2))})
    assert "input 'ids', axis 0; it was built for 1:4:8" in error.value.note
    with pytest.raises(UsageError, match="does not take 1 for dimension 'seq'"):
        profile.check({"ids": np.zeros((1, 1))})
    with pytest.raises(UsageError, match="has 1 dimensions"):
        profile.check({"ids": np.zeros(4)})


def test_a_profile_is_json() -> None:
    profile = Profile((IDS,), {"batch": ShapeRange(1, 2, 3), "seq": ShapeRange(4, 4, 4)})
    assert Profile.from_facts(profile.to_dict()) == profile
    assert profile.to_dict() == {
        "inputs": [{"name": "ids", "dtype": "int64", "dims": ["batch", "seq"]}],
        "ranges": {"batch": "1:2:3", "seq": "4:4:4"},
        "shapes": {"ids": {"minimum": [1, 4], "optimum": [2, 4], "maximum": [3, 4]}},
    }


def test_names_of_other_exporters_come_back_from_json() -> None:
    """A decoder's mask of Optimum, an input of TensorFlow: names that `--input` has no grammar for."""
    mask = InputSpec("serving default:0", "int64", ("batch size", "past_sequence_length + 1"))
    profile = resolve([mask], parse_ranges(["past_sequence_length + 1=1:8:16"]))
    assert Profile.from_facts(json.loads(json.dumps(profile.to_dict()))) == replace(profile, notes=())

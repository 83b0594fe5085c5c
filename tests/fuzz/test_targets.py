"""Every target reads its seeds and a few inputs that are always the same, so that fuzzing goes on working."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Finding, Target

# Of these one input takes a second.
SLOW = {"program", "hugging-face", "command-line"}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_some_changes(name: str) -> None:
    target = TARGETS[name]
    seeds = len(target.valid)
    taken = [target.run(target.input(number)) for number in range(min(seeds, 3) if name in SLOW else seeds)]
    assert any(taken)
    for number in range(seeds, seeds + (2 if name in SLOW else 20)):
        target.run(target.input(number))


def test_an_input_depends_on_its_number_alone() -> None:
    for target in (TARGETS["onnx-parse"], TARGETS["npz"], TARGETS["devices"]):
        other = Target(target.name, target.seeds, target.mutate, target.read)
        assert [target.input(number) for number in range(30)] == [other.input(number) for number in range(30)]


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=200))
@pytest.mark.parametrize("name", ["onnx-parse", "weights", "safetensors", "npz", "log", "replies", "headers", "texts"])
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


def test_reaching_out_is_a_finding() -> None:
    def read(data: bytes, folder: object) -> None:
        open(f"{folder}/../outside/secret").close()  # noqa: PTH123

    with pytest.raises(Finding, match=r"open .*outside/secret"):
        Target("reaches", lambda: [b""], lambda data, rng: data, read).run(b"")

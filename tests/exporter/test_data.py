"""Behaviour of `exporter.data`: every source, every cast, every way in which data can be wrong."""

from __future__ import annotations

import contextlib
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actx.exporter.data import (
    DTYPES,
    Data,
    InputSpec,
    cast_feeds,
    digest,
    head,
    hold_out,
    import_activations,
    import_callable,
    load_data,
    synthetic_data,
)
from actx.exporter.errors import ActxError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

X = InputSpec("x", "float32", ("n", 3))
IDS = InputSpec("ids", "int64", ("n", "seq"))
MASK = InputSpec("mask", "int64", ("n", "seq"))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Write the source given as the test's parameter to a module in the current directory; return the module's name."""
    name = f"user_data_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text("import numpy as np\n" + request.param, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def save(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ids:int64[batch,seq]", InputSpec("ids", "int64", ("batch", "seq"))),
        (" x : float32".replace(" : ", ":") + "[1, 3 ,H]", InputSpec("x", "float32", (1, 3, "H"))),
        ("input:0:float16[8]", InputSpec("input:0", "float16", (8,))),
        ("scale:float32[]", InputSpec("scale", "float32", ())),
    ],
)
def test_parse(text: str, expected: InputSpec) -> None:
    assert InputSpec.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "x:float32", "x[1]", "x:float32[1", "x:float32[1,]", "x:float32[,]", "x:float32[0]", "x:float32[-1]",
     ":float32[1]", "x:float32[1.5]", "x:float32[a-b]", "x:float32[[1]]", "x:complex64[1]", "x:bfloat16[1]", "x:[1]",
     "x:float32[1]\ny"],
)  # fmt: skip
def test_parse_refuses_with_the_grammar(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        InputSpec.parse(text)
    assert "NAME:DTYPE[DIM,...]" in caught.value.note or "element types" in caught.value.note


@settings(deadline=None)
@given(
    st.text(min_size=1).filter(lambda name: name == name.strip() and name.isprintable()),
    st.sampled_from(DTYPES),
    st.lists(st.one_of(st.integers(1, 10**6), st.from_regex(r"[a-z_]\w{0,5}", fullmatch=True)), max_size=4),
)
def test_parse_reads_what_str_writes(name: str, dtype: str, dims: list[int | str]) -> None:
    spec = InputSpec(name, dtype, tuple(dims))
    assert InputSpec.parse(str(spec)) == spec


@settings(deadline=None)
@given(st.text())
def test_parse_only_raises_usage_errors(text: str) -> None:
    with contextlib.suppress(UsageError):
        InputSpec.parse(text)


def test_npz_comes_in_batches_of_32_and_again_on_every_pass(tmp_path: Path) -> None:
    x = np.arange(70 * 3, dtype=np.float32).reshape(70, 3)
    data = load_data(save(tmp_path / "d.npz", x=x), [X])
    assert [len(feeds["x"]) for feeds in data] == [32, 32, 6]
    assert (data.samples, data.synthetic, data.notes) == (70, False, ())
    assert np.array_equal(np.concatenate([feeds["x"] for feeds in data]), x)


def test_extras_are_split_with_the_samples_and_not_fed(tmp_path: Path) -> None:
    source = save(tmp_path / "d.npz", x=np.ones((5, 3), np.float32), label=np.arange(5), vocabulary=np.arange(9))
    batches = list(load_data(source, [X], batch_size=2).batches())
    assert all(set(batch.feeds) == {"x"} for batch in batches)
    assert [batch.extras["label"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert all(len(batch.extras["vocabulary"]) == 9 for batch in batches)


def test_folder_is_read_in_order_of_names_with_lengths_of_its_own(tmp_path: Path) -> None:
    for name, rows, length in (("b", 2, 7), ("a", 1, 5), ("c", 3, 4)):
        save(tmp_path / f"{name}.npz", ids=np.zeros((rows, length), np.int64))
    (tmp_path / "notes.txt").write_text("not data", encoding="utf-8")
    data = load_data(str(tmp_path), [IDS])
    assert [feeds["ids"].shape for feeds in data] == [(1, 5), (2, 7), (3, 4)]
    assert data.samples == 6
    split = load_data(str(tmp_path), [IDS], batch_size=2)
    assert [feeds["ids"].shape for feeds in split] == [(1, 5), (2, 7), (2, 4), (1, 4)]


def test_static_first_dimension_fixes_the_batch_and_the_remainder_is_noted(tmp_path: Path) -> None:
    spec = InputSpec("x", "float32", (4, 3))
    source = save(tmp_path / "d.npz", x=np.ones((10, 3), np.float32))
    data = load_data(source, [spec])
    assert [feeds["x"].shape for feeds in data] == [(4, 3), (4, 3)]
    assert data.samples == 8
    assert data.notes == ("the model takes exactly 4 samples at a time: 2 of 10 were left out",)
    with pytest.raises(UsageError, match="fixes the batch size"):
        load_data(source, [spec], batch_size=5)
    with pytest.raises(ActxError, match="10 samples, too few"):
        load_data(source, [InputSpec("x", "float32", (11, 3))])


def test_scalar_inputs_are_fed_whole(tmp_path: Path) -> None:
    source = save(tmp_path / "d.npz", x=np.ones((3, 3), np.float32), scale=np.float32(2))
    data = load_data(source, [X, InputSpec("scale", "float32", ())], batch_size=2)
    assert [(feeds["x"].shape, feeds["scale"].shape) for feeds in data] == [((2, 3), ()), ((1, 3), ())]


@pytest.mark.parametrize(
    ("given_type", "wanted", "values"),
    [
        ("float64", "float32", [0.1, -2.5]),
        ("float32", "float16", [0.1, 65504]),
        ("float16", "float64", [0.1]),
        ("int32", "int64", [-(2**31), 2**31 - 1]),
        ("int64", "int32", [-5, 2**31 - 1]),
        ("uint8", "float32", [0, 255]),
        ("int64", "float32", [2**24]),
        ("bool", "int64", [True, False]),
        ("int64", "bool", [0, 1]),
        (">f4", "float32", [1.5]),
    ],
)
def test_casts_that_keep_the_values_are_made_and_noted(
    tmp_path: Path, given_type: str, wanted: str, values: list[float]
) -> None:
    array = np.array(values, given_type)
    data = load_data(save(tmp_path / "d.npz", x=array), [InputSpec("x", wanted, ("n",))])
    (feeds,) = data
    assert feeds["x"].dtype == np.dtype(wanted)
    assert np.allclose(feeds["x"].astype(float), array.astype(float), rtol=2.0**-11, atol=0)
    assert data.notes == (f"input 'x' was cast from {array.dtype} to {wanted}",)


@pytest.mark.parametrize(
    ("given_type", "wanted", "values"),
    [
        ("float32", "int64", [1.0, 2.0]),
        ("float32", "bool", [1.0]),
        ("float64", "float32", [1e39]),
        ("float32", "float16", [65536]),
        ("int64", "int32", [2**31]),
        ("int64", "uint64", [-1]),
        ("uint64", "int64", [2**63]),
        ("int64", "float32", [2**24 + 1]),
        ("int64", "bool", [0, 2]),
        ("complex64", "float32", [1]),
        ("<U3", "int64", ["one"]),
    ],
)
def test_casts_that_change_values_are_refused(tmp_path: Path, given_type: str, wanted: str, values: list[Any]) -> None:
    source = save(tmp_path / "d.npz", x=np.array(values, given_type))
    with pytest.raises(ActxError, match=r"input 'x' .* has the element type"):
        load_data(source, [InputSpec("x", wanted, ("n",))])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.ones((2, 3), np.float32)}, "input 'x' is missing"),
        ({"x": np.ones(3, np.float32)}, "wrong shape"),
        ({"x": np.ones((2, 4), np.float32)}, "wrong shape"),
        ({"x": np.ones((0, 3), np.float32)}, "no samples"),
        ({"x": np.array([[1, 2, 3], [1, np.nan, 3]], np.float32)}, "'x' .* not finite in sample 1"),
        ({"x": np.array([[1, 2, np.inf]], np.float64)}, "'x' .* not finite in sample 0"),
    ],
)
def test_each_fault_of_an_input_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ActxError, match=message):
        load_data(save(tmp_path / "d.npz", **arrays), [X])


def test_missing_input_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ActxError) as caught:
        load_data(save(tmp_path / "d.npz", a=np.ones(1), b=np.ones(1)), [X])
    assert caught.value.note == "it has a, b"


def test_inputs_must_agree_on_samples_and_on_dimensions_of_one_name(tmp_path: Path) -> None:
    source = save(tmp_path / "d.npz", ids=np.zeros((3, 5), np.int64), mask=np.zeros((2, 5), np.int64))
    other = InputSpec("mask", "int64", ("m", "seq"))
    with pytest.raises(ActxError, match="different numbers of samples") as caught:
        load_data(source, [IDS, other])
    assert caught.value.note == "first axes: ids 3, mask 2"
    source = save(tmp_path / "e.npz", ids=np.zeros((3, 5), np.int64), mask=np.zeros((3, 4), np.int64))
    with pytest.raises(ActxError, match=r"'mask' .* wrong shape"):
        load_data(source, [IDS, MASK])


def test_broken_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    save(whole, x=np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32))
    content = whole.read_bytes()
    broken = {
        "cut.npz": content[: len(content) // 2],
        "empty.npz": b"",
        "text.npz": b"hello world, this is no zip",
        "flipped.npz": content[:300] + bytes([content[300] ^ 0xFF]) + content[301:],
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ActxError, match="npz") as caught:
            load_data(str(tmp_path / name), [X])
        assert caught.value.remedy


def test_single_array_and_foreign_zip_are_no_npz(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.ones((2, 3), np.float32))
    with pytest.raises(ActxError, match=r"not an \.npz"):
        load_data(str(tmp_path / "a.npz"), [X])
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("x", "text")
    with pytest.raises(ActxError, match=r"not an \.npz"):
        load_data(str(tmp_path / "z.npz"), [X])


def test_pickles_are_not_read(tmp_path: Path) -> None:
    flag = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (type(flag).touch, (flag,))

    source = save(tmp_path / "d.npz", x=np.array([Hostile()], dtype=object))
    with pytest.raises(ActxError, match="Python objects"):
        load_data(source, [X])
    assert not flag.exists()


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="does not exist"):
        load_data(str(tmp_path / "absent.npz"), [X])
    with pytest.raises(ActxError, match=r"no \.npz files"):
        load_data(str(tmp_path), [X])
    with pytest.raises(UsageError, match="batch size"):
        load_data(save(tmp_path / "d.npz", x=np.ones((2, 3))), [X], batch_size=0)


def test_folder_that_changes_between_passes_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=np.ones((2, 3), np.float32))
    data = load_data(str(tmp_path), [X])
    save(tmp_path / "a.npz", x=np.ones((3, 3), np.float32))
    with pytest.raises(ActxError, match="3 samples in this pass and 2 in the first"):
        list(data)


COUNTING = """
calls = []
def batches():
    calls.append(1)
    for n in (2, 3):
        yield {"x": np.full((n, 3), n, np.float64), "label": np.arange(n)}
"""


@pytest.mark.parametrize("module", [COUNTING], indirect=True)
def test_callable_is_called_once_per_pass(module: str) -> None:
    data = load_data(f"{module}:batches", [X])
    path = list(sys.path)
    assert [feeds["x"].shape for feeds in data] == [(2, 3), (3, 3)]
    assert sys.path == path
    assert len(sys.modules[module].calls) == 2
    assert data.samples == 5
    assert data.notes == ("input 'x' was cast from float64 to float32",)


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("def f():\n    yield [1]", "f", "item 0 .* is no dict"),
        ("def f():\n    return {'x': np.ones((1, 3))}", "f", "does not yield"),
        ("def f():\n    return None", "f", "does not yield"),
        ("def f():\n    yield {'x': np.ones((1, 3))}\n    raise KeyError('boom')", "f", "failed"),
        ("def f(argument):\n    yield {}", "f", "failed"),
        ("def f():\n    yield from ()", "f", "has no samples"),
        ("def f():\n    yield {'x': [[1, 2], [3]]}", "f", "'x' in item 0 .* is no array"),
        ("f = 3", "f", "is no callable"),
        ("f = 3", "g", "is not in its module"),
        ("raise RuntimeError('at import')", "f", "cannot be imported"),
        ("raise SystemExit(3)", "f", "cannot be imported"),
        ("import nothing_of_this_name", "f", "cannot be imported"),
    ],
    indirect=["module"],
)
def test_faults_of_a_callable_are_named(module: str, name: str, message: str) -> None:
    with pytest.raises(ActxError, match=message) as caught:
        load_data(f"{module}:{name}", [X])
    assert "Traceback" not in str(caught.value)


CHANGING = """
calls = []
def f():
    calls.append(1)
    yield {"x": np.ones((len(calls), 3), np.float32)}
"""


@pytest.mark.parametrize("module", [CHANGING], indirect=True)
def test_callable_that_changes_between_passes_is_noticed(module: str) -> None:
    data = load_data(f"{module}:f", [X])
    with pytest.raises(ActxError, match="2 samples in this pass and 1 in the first"):
        list(data)


def test_callables_by_path_or_without_name_are_refused() -> None:
    for text in ("nothing_of_this_name:f", "os.path:absent"):
        with pytest.raises(ActxError):
            import_callable(text, "metric")
    for text in ("data.py:", ":f", "a b:c", "pkg/mod:f"):
        with pytest.raises(UsageError, match="is no metric"):
            import_callable(text, "metric")
    assert import_callable("os.path:join", "metric")("a", "b") == "a/b"


def test_synthetic_data_depends_on_the_seed_alone_and_is_marked() -> None:
    specs = [IDS, InputSpec("attention_mask", "int64", ("n", "seq")), InputSpec("x", "float16", ("n", 4)),
             InputSpec("token_type_ids", "int64", ("n", "seq")), InputSpec("position_ids", "int32", (1, "seq")),
             InputSpec("flag", "bool", ("n",)), InputSpec("scale", "float32", ())]  # fmt: skip
    sizes = {"n": 6, "seq": 9}
    data = synthetic_data(specs, sizes, seed=3)
    (feeds,) = data
    assert (data.synthetic, data.samples) == (True, 6)
    for spec in specs:
        assert feeds[spec.name].dtype == np.dtype(spec.dtype)
        assert feeds[spec.name].shape == tuple(sizes[d] if isinstance(d, str) else d for d in spec.dims)
    mask = feeds["attention_mask"]
    assert mask[:, 0].all()
    assert (np.diff(mask, axis=1) <= 0).all()
    assert not feeds["token_type_ids"].any()
    assert feeds["position_ids"].tolist() == [list(range(9))]
    assert 0 <= feeds["ids"].min() <= feeds["ids"].max() < 100
    (again,) = synthetic_data(specs, sizes, seed=3)
    (other,) = synthetic_data(specs, sizes, seed=4)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    assert not np.array_equal(feeds["x"], other["x"])


@pytest.mark.parametrize("sizes", [{}, {"n": 2}, {"n": 2, "seq": 0}])
def test_synthetic_data_needs_every_size(sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="needs the size"):
        synthetic_data([IDS], sizes)


def test_cast_feeds_to_a_float16_model() -> None:
    feeds: dict[str, Any] = {"x": np.ones((2, 3), np.float32), "unused": np.ones(1)}
    cast = cast_feeds(feeds, [InputSpec("x", "float16", ("n", 3))])
    assert set(cast) == {"x"}
    assert cast["x"].dtype == np.float16
    with pytest.raises(ActxError, match="missing"):
        cast_feeds({}, [X])


def test_modules_that_register_nothing_or_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registers_nothing.py").write_text("")
    (tmp_path / "registers_gelu.py").write_text("from actx.custom_ops import activation\nactivation('gelu', abs)\n")
    with pytest.raises(UsageError, match="registers no activation"):
        import_activations("registers_nothing")
    with pytest.raises(ActxError, match="cannot be imported") as caught:
        import_activations("registers_gelu")
    assert "choose another name" in caught.value.note
    assert caught.value.remedy == "The module itself is at fault."
    with pytest.raises(ActxError, match="cannot be imported") as caught:
        import_activations("registers.nowhere")
    assert "Run from the folder" in caught.value.remedy


# --- parts of data ---


def rows_of(data: Data) -> list[float]:
    return [float(row) for feeds in data for row in feeds["x"][:, 0]]


def numbered(folder: Path, *sizes: int, specs: tuple[InputSpec, ...] = (X,), **options: Any) -> Data:
    """Sample i is three times i; files of these sizes, or one file."""
    first = 0
    for index, size in enumerate(sizes):
        label = np.arange(first, first + size)
        x = np.repeat(label[:, None], 3, axis=1).astype(np.float32)
        save(folder / f"{index:03}.npz", x=x, label=label, note=np.array(["constant"]))
        first += size
    source = folder if len(sizes) > 1 else folder / "000.npz"
    return load_data(str(source), specs, **options)


@pytest.mark.parametrize("sizes", [(2,), (3,), (1, 1), (7,), (100,), (5, 9, 2), (1,) * 15, (8,) * 8])
def test_rows_are_held_out_of_few_batches(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    data = numbered(tmp_path, *sizes)
    rest, held = hold_out(data)
    total = sum(sizes)
    assert sorted(rows_of(rest) + rows_of(held)) == list(range(total))
    assert rows_of(held) == rows_of(hold_out(data)[1])
    assert rest.samples + held.samples == total
    assert total // 4 <= held.samples <= max(1, total // 4 + 1)
    gaps = np.diff([-1, *rows_of(held), total])
    assert gaps.max() <= 4
    assert rest.notes == held.notes
    assert rest.notes[-1].startswith(f"{held.samples} of {total} samples were held out")
    for batch in (*rest.batches(), *held.batches()):
        assert batch.extras["label"].tolist() == batch.feeds["x"][:, 0].tolist()
        assert batch.samples == len(batch.feeds["x"])
        assert batch.extras["note"].tolist() == ["constant"]


def test_whole_batches_are_held_out_of_many(tmp_path: Path) -> None:
    data = numbered(tmp_path, *range(1, 18))
    rest, held = hold_out(data)
    assert [len(feeds["x"]) for feeds in held] == [3, 7, 11, 15]
    assert [len(feeds["x"]) for feeds in rest] == [1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17]
    assert (rest.samples, held.samples) == (117, 36)


def test_batches_that_the_model_fixes_stay_whole(tmp_path: Path) -> None:
    fixed = (InputSpec("x", "float32", (4, 3)),)
    rest, held = hold_out(numbered(tmp_path, 23, specs=fixed))
    assert [len(feeds["x"]) for feeds in rest] == [4] * 4
    assert rows_of(held) == [8, 9, 10, 11]
    with pytest.raises(ActxError, match="has one batch, and none to hold out"):
        hold_out(numbered(tmp_path, 7, specs=fixed))


def test_one_sample_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="has one sample, and none to hold out"):
        hold_out(numbered(tmp_path, 1))


def test_scalars_are_in_every_part() -> None:
    specs = (X, InputSpec("scale", "float32", ()))
    rest, held = hold_out(synthetic_data(specs, {"n": 4}))
    assert (rest.samples, held.samples) == (3, 1)
    assert next(iter(rest))["scale"] == next(iter(held))["scale"]


def test_a_held_out_part_notices_a_source_that_changed(tmp_path: Path) -> None:
    _, held = hold_out(numbered(tmp_path, 20, 20))
    numbered(tmp_path, 20, 4)
    with pytest.raises(ActxError, match="gave 24 samples in this pass and 40 in the first"):
        list(held)


@pytest.mark.parametrize(("samples", "sizes"), [(1, [1]), (5, [5]), (6, [5, 1]), (13, [5, 8]), (14, [5, 8, 1])])
def test_the_first_samples(tmp_path: Path, samples: int, sizes: list[int]) -> None:
    part = head(numbered(tmp_path, 5, 8, 2), samples)
    assert [batch.samples for batch in part.batches()] == sizes
    assert rows_of(part) == list(range(samples))
    assert part.samples == samples
    assert part.notes[-1] == f"the first {samples} of 15 samples"


def test_no_more_than_there_are(tmp_path: Path) -> None:
    data = numbered(tmp_path, 5, 8)
    assert head(data, 13) is data
    assert head(data, 99) is data
    with pytest.raises(UsageError, match="at least 1"):
        head(data, 0)


@pytest.mark.parametrize(("samples", "expected"), [(1, 4), (7, 4), (8, 8), (99, 12)])
def test_the_first_whole_batches(tmp_path: Path, samples: int, expected: int) -> None:
    data = numbered(tmp_path, 15, specs=(InputSpec("x", "float32", (4, 3)),))
    assert rows_of(head(data, samples)) == list(range(expected))


def test_a_digest_tells_arrays_apart() -> None:
    x = np.arange(6, dtype=np.float32)
    same = [{"x": x, "y": x[:2]}, {"y": np.array([0, 1], np.float32), "x": x.copy()}]
    others = [{"x": x}, {"z": x}, {"x": x.reshape(2, 3)}, {"x": x.astype(np.int32)}, {"x": -x}, {"x": x[::-1]}, {}]
    assert len({digest(arrays) for arrays in same}) == 1
    assert len({digest(arrays) for arrays in (*same, *others)}) == 1 + len(others)

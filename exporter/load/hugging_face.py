"""Read a folder of Hugging Face transformers: config.json and safetensors. Nothing is looked up, no code in it is run."""

from __future__ import annotations

import contextlib
import inspect
import json
from typing import TYPE_CHECKING, Any

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = "config.json"
_FILES = (CONFIG, "*.safetensors", "*.safetensors.index.json")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that make the model, in the order of their names."""
    return sorted(file for pattern in _FILES for file in folder.glob(pattern))


def read_folder(folder: Path) -> Any:
    """Load the model that the configuration names, in float32, without a cache of keys and values.

    Attention is written out: as one fused operator torch exports it with a third more nodes around it.

    Returns:
        The model, a `transformers.PreTrainedModel`.

    Raises:
        ActxError: transformers is not installed, does not know the model, or cannot load it; weights are missing.
    """
    try:
        import transformers  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        what = f"{folder} is a Hugging Face folder, and transformers is not installed"
        raise ActxError(what, note=str(error), remedy="Install it: pip install 'actx[hf]'.") from error
    kind = _model_class(folder, transformers)
    try:
        with _offline(), _no_progress_bar():
            model, report = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="float32",
                attn_implementation="eager", output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        what = f"transformers {transformers.__version__} cannot load {folder}"
        raise ActxError(what, note=str(error), remedy="Save it again with save_pretrained of this version.") from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would make them up
        raise ActxError(
            f"{folder} lacks weights of its {kind.__name__}",
            note=f"{len(missing)} missing, the first is {missing[0]}",
            remedy="Save the whole model with save_pretrained.",
        )
    model.config.use_cache = False
    return model


def default_inputs(folder: Path, model: Any) -> list[InputSpec]:
    """Return the inputs that a model of this type needs.

    Raises:
        ActxError: they cannot be told from its configuration.
    """
    name, config = model.main_input_name, model.config
    if name == "input_ids" and not config.is_encoder_decoder:
        takes = inspect.signature(model.forward).parameters
        names = [name for name in ("input_ids", "attention_mask") if name in takes]
        return [InputSpec(name, "int64", ("batch", "tokens")) for name in names]
    size = getattr(config, "image_size", None)
    if name == "pixel_values" and size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        return [InputSpec(name, "float32", ("batch", getattr(config, "num_channels", 3), height, width))]
    raise ActxError(
        f"{folder} does not say the sizes of the inputs of its {type(model).__name__}",
        note=f"its main input is {name}",
        remedy=f"State every input: --input '{name}:float32[batch,3,224,224]' for images of that size.",
    )


def _model_class(folder: Path, transformers: Any) -> Any:
    try:
        names = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        what = f"cannot read {folder / CONFIG}"
        raise ActxError(what, note=str(error), remedy="Save the model again with save_pretrained.") from error
    name = names[0] if isinstance(names, list) and names else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ActxError(
            f"{folder} is of an architecture that transformers {transformers.__version__} does not have",
            note=f"architectures: {names}",
            remedy="Load it in your own code and export it with torch.export; code in the folder is never run.",
        )
    return kind


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let huggingface_hub make no connection until the end; HF_HUB_OFFLINE in the environment counts only at its import."""
    from huggingface_hub import constants  # noqa: PLC0415

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging  # noqa: PLC0415

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]

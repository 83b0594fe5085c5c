"""Read a folder of Hugging Face transformers: config.json and safetensors. Nothing is looked up, no code in it is run."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from actx.exporter.data import InputSpec
from actx.exporter.documents import parse_json, read_document
from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = "config.json"
_SAVE_AGAIN = "Save the model again with save_pretrained."
_FILES = (CONFIG, "*.safetensors", "*.safetensors.index.json")
# One second at the rate that models of speech are trained on, in samples.
WAVEFORM = 16000
# Weights of 4 bits, that two modules share, and that are made once more when they are read.
_ELEMENTS_PER_BYTE = 8


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
    _check_index(folder)
    try:
        with _offline(), _no_progress_bar(), _no_more_weights_than(folder):
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
    for part in model.modules():  # a decoder may have a configuration of its own
        if hasattr(getattr(part, "config", None), "use_cache"):
            part.config.use_cache = False
    return model


def default_inputs(folder: Path, model: Any) -> list[InputSpec]:
    """Return the inputs that a model of this type needs.

    1. What the model names as its main input, and the ids that its decoder begins with.
    2. With token ids their mask, and the images of a model that compares the two.

    Raises:
        ActxError: they cannot be told from its configuration.
    """
    config = model.config
    takes = inspect.signature(model.forward).parameters
    names = [model.main_input_name]
    if "input_ids" in names:
        names += ["attention_mask"] + ["pixel_values"] * _compares(config)
    if config.is_encoder_decoder:
        names.append("decoder_input_ids")
    known = {spec.name: spec for spec in _known_inputs(config)}
    wanted = [name for name in names if name in takes]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ActxError(
            f"{folder} does not say the sizes of the inputs of its {type(model).__name__}",
            note=f"it takes {', '.join(takes)}; not known is {', '.join(unknown) or 'any of them'}",
            remedy="State every input that it needs: --input 'pixel_values:float32[batch,3,224,224]' for images of that size.",
        )
    return [known[name] for name in wanted]


def _known_inputs(config: Any) -> Iterator[InputSpec]:
    """Yield the inputs whose sizes the configuration tells."""
    yield InputSpec("input_ids", "int64", ("batch", "tokens"))
    yield InputSpec("attention_mask", "int64", ("batch", "tokens"))
    yield InputSpec("decoder_input_ids", "int64", ("batch", "decoder_tokens"))
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        yield InputSpec("pixel_values", "float32", ("batch", getattr(vision, "num_channels", 3), height, width))
    if hasattr(config, "conv_stride"):  # layers on the waveform itself
        yield InputSpec("input_values", "float32", ("batch", WAVEFORM))
    elif hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):
        yield InputSpec("input_values", "float32", ("batch", config.max_length, config.num_mel_bins))
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        frames = 2 * config.max_source_positions  # a convolution of stride 2 is before the positions
        yield InputSpec("input_features", "float32", ("batch", config.num_mel_bins, frames))


def _compares(config: Any) -> bool:
    """Tell whether the model has a tower for text and one for images, with no images among its tokens."""
    towers = hasattr(config, "text_config") and hasattr(config, "vision_config")
    return towers and not any(hasattr(config, name) for name in ("image_token_id", "image_token_index"))


def _model_class(folder: Path, transformers: Any) -> Any:
    try:
        names = parse_json(read_document(folder / CONFIG)).get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        what = f"cannot read {folder / CONFIG}"
        raise ActxError(what, note=str(error), remedy=_SAVE_AGAIN) from error
    name = names[0] if isinstance(names, list) and names else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ActxError(
            f"{folder} is of an architecture that transformers {transformers.__version__} does not have",
            note=f"architectures: {names}",
            remedy="Load it in your own code and export it with torch.export; code in the folder is never run.",
        )
    return kind


def _check_index(folder: Path) -> None:
    """Check that the list of files that weights are spread over names those of the folder: it may name any on the machine."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = {str(name) for name in parse_json(read_document(index))["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ActxError(f"cannot read {index}", note=str(error), remedy=_SAVE_AGAIN) from error
        if elsewhere := sorted(name for name in names if PurePath(name).name != name):
            note = f"it names {elsewhere[0]}"
            raise ActxError(
                f"{index} takes weights from elsewhere", note=note, remedy="Put all of them into the folder."
            )


@contextlib.contextmanager
def _no_more_weights_than(folder: Path) -> Iterator[None]:
    """Let no module be made whose weights the files cannot hold: a configuration may ask for any number of any size."""
    from torch.nn.modules.module import register_module_parameter_registration_hook  # noqa: PLC0415 - slow to import

    left = _ELEMENTS_PER_BYTE * sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    def take(_: Any, name: str, parameter: Any) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            msg = f"its configuration asks for more weights than its files can hold, at {name}"
            raise ValueError(msg)

    hook = register_module_parameter_registration_hook(take)
    try:
        yield
    finally:
        hook.remove()


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

"""Read what torch.save and safetensors write: a whole module, or weights that are put into the user's module."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from actx.exporter.data import current_directory_importable, import_callable
from actx.exporter.errors import ActxError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

State: TypeAlias = "Mapping[str, Tensor]"

# Where training checkpoints keep the weights: PyTorch Lightning, and the tutorials of PyTorch.
NESTED = ("state_dict", "model_state_dict")
_DAMAGED = "It may be truncated: copy or save it again."


def read_pickle(path: Path, *, factory: str | None, trust: bool) -> nn.Module:
    """Read a file of torch.save: a module as it is, or a state dict into the module that the factory makes.

    Raises:
        ActxError: it holds objects, which run code when unpickled, and there is no `trust`; it is damaged; it holds
            something else; or its weights do not fit the module.
        UsageError: weights without a factory, or a module with one.
    """
    from torch import nn  # noqa: PLC0415 - slow to import, and not needed for ONNX files

    found = _load(path, trust=trust)
    if not isinstance(found, nn.Module):
        return _fill(path, _state_of(path, found), factory)
    if factory is not None:
        raise UsageError(
            f"{path} holds a module of its own",
            note=f"--model {factory} would not be used",
            remedy="Leave --model out.",
        )
    return found


def read_safetensors(path: Path, *, factory: str | None) -> nn.Module:
    """Read the weights into the module that the factory makes.

    Raises:
        ActxError: the file is damaged, or its weights do not fit the module.
        UsageError: there is no factory.
    """
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    try:
        state = load_file(path)
    except Exception as error:
        raise ActxError(f"{path} is a damaged safetensors file", note=str(error), remedy=_DAMAGED) from error
    return _fill(path, state, factory)


def _load(path: Path, *, trust: bool) -> Any:
    import torch  # noqa: PLC0415

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            # What torch itself says is how to switch the check off, and then the reason.
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition(". ")[0]
            raise ActxError(
                f"{path} holds pickled objects, which run code when loaded, and was not loaded",
                note=reason,
                remedy="Export it: torch.export.save(torch.export.export(module, args), 'model.pt2'); or add --trust if you "
                "made the file.",
            ) from error
    except Exception as error:
        raise ActxError(f"{path} is damaged", note=f"{type(error).__name__}: {error}", remedy=_DAMAGED) from error
    try:
        with current_directory_importable():
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ActxError(
            f"{path} cannot be unpickled",
            note=f"{type(error).__name__}: {error}",
            remedy="Run from the folder that holds the code it was saved with, or install that code.",
        ) from error


def _state_of(path: Path, found: Any) -> State:
    import torch  # noqa: PLC0415

    if isinstance(found, Mapping):
        for state in (found, *(found[name] for name in NESTED if name in found)):
            if (
                isinstance(state, Mapping)
                and state
                and all(isinstance(value, torch.Tensor) for value in state.values())
            ):
                return state
    listed = f" of {', '.join(map(str, list(found)[:5]))}" if isinstance(found, Mapping) else ""
    raise ActxError(
        f"{path} holds neither a module nor a state dict",
        note=f"it holds a {type(found).__name__}{listed}",
        remedy="Save module.state_dict() and give the module with --model pkg.mod:factory.",
    )


def _fill(path: Path, state: State, factory: str | None) -> nn.Module:
    if factory is None:
        raise UsageError(
            f"{path} holds weights without a module",
            note=f"{len(state)} tensors, the first is {next(iter(state), 'none')}",
            remedy="Name what makes the module: --model pkg.mod:factory.",
        )
    module = _make(factory)
    fitting = _fit(path, state, module.state_dict(), factory)
    try:
        module.load_state_dict(fitting)
    except RuntimeError as error:
        what = f"the weights of {path} do not fit the module of {factory}"
        raise ActxError(what, note=str(error).partition("\n")[2], remedy="Compare the module's sizes.") from error
    return module


def _make(factory: str) -> nn.Module:
    from torch import nn  # noqa: PLC0415

    function = import_callable(factory, "model factory")
    try:
        with current_directory_importable():
            module = function()
    except Exception as error:
        raise ActxError(
            f"model factory '{factory}' failed",
            note=f"{type(error).__name__}: {error}",
            remedy="Mend it: it is called without arguments.",
        ) from error
    if not isinstance(module, nn.Module):
        raise ActxError(
            f"model factory '{factory}' gives no torch module",
            note=f"it gives a {type(module).__name__}",
            remedy="Name a callable that returns the module, such as its class.",
        )
    return module


def _fit(path: Path, state: State, own: Mapping[str, Any], factory: str) -> State:
    """Return the weights under the names of the module: as they are, or without outer names that all of them share."""
    named = [state]
    while shared := _shared_prefix(named[-1]):
        named.append({key.removeprefix(shared): value for key, value in named[-1].items()})
    best = min(named, key=lambda candidate: len(candidate.keys() ^ own.keys()))
    if best.keys() == own.keys():
        _check_types(path, best, own)
        return best
    missing = [key for key in own if key not in best]
    unexpected = [key for key in best if key not in own]
    groups = (("missing", missing), ("unexpected", unexpected))
    note = "; ".join(f"{len(keys)} {word}, the first is {keys[0]}" for word, keys in groups if keys)
    raise ActxError(
        f"the weights of {path} are not those of the module of {factory}",
        note=note,
        remedy="Give the factory of the module that was saved.",
    )


def _check_types(path: Path, state: State, own: Mapping[str, Any]) -> None:
    for key, value in own.items():
        if value.is_floating_point() != state[key].is_floating_point():
            raise ActxError(
                f"the weights of {path} are of another type than the module's",
                note=f"{key} is {state[key].dtype}, the module's is {value.dtype}",
                remedy="Save the weights as the module holds them; quantized ones cannot be read.",
            )


def _shared_prefix(state: State) -> str:
    """Return the first part of the names with its dot where it is one and the same, such as `module.` or `model.`."""
    first = {key.partition(".")[0] + "." for key in state}
    prefix = next(iter(first), "")
    return prefix if len(first) == 1 and all(key.startswith(prefix) for key in state) else ""

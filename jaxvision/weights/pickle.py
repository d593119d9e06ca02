"""PyTorch's own weight files: pickles of a state_dict or of a checkpoint. Reading them needs torch and runs no code."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxvision.errors import UserError, missing_package_error
from jaxvision.weights.weight_file import WeightFile, first_names, without_wrappers

logger = logging.getLogger(__name__)

# Entries of checkpoints that hold weights, preferred first: moving averages (timm, BasicSR and others), then plain
# weights (timm, Lightning and MMCV; DeepSpeed's "module"; I-JEPA's "encoder").
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
_WEIGHTS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "module",
    "backbone",
    "encoder",
)


class PickleFile(WeightFile):
    """A PyTorch pickle, read by ``torch.load(weights_only=True)``.

    Args:
      path: a pickle of a state_dict, or of a checkpoint that nests one as training scripts do.

    Raises:
      UserError: torch is not installed, the file is damaged, or it contains no tensors or more than tensors.
    """

    def __init__(self, path: Path):
        try:
            import torch
        except ImportError as e:
            raise missing_package_error("torch", f"{path} is a PyTorch pickle; reading it", "torch") from e
        self.path = path
        state = without_wrappers(_find_state(_load(path), path), path)
        self._tensors: dict[str, Any] = {name: x for name, x in state.items() if isinstance(x, torch.Tensor)}
        self.unused = [name for name in state if name not in self._tensors]
        sparse = [name for name, x in self._tensors.items() if x.layout is not torch.strided]
        if sparse:
            raise UserError(f"{path}: {sparse[0]} is a sparse tensor, expected a dense one. Save it as x.to_dense().")
        empty = [name for name, x in self._tensors.items() if x.is_meta]
        if empty:
            raise UserError(
                f"{path}: {empty[0]} is a tensor of PyTorch's meta device, which has no values. "
                "Load the weights into the model before its state_dict is saved."
            )
        self.shapes = {name: tuple(x.shape) for name, x in self._tensors.items()}
        names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        self.dtypes = {name: names.get(x.dtype, str(x.dtype)) for name, x in self._tensors.items()}
        self._int16 = torch.int16

    def tensor(self, name: str) -> np.ndarray:
        x = self._tensors[name].detach()
        if self.dtypes[name] == "BF16":  # torch cannot convert it, because numpy has this dtype only through ml_dtypes
            return x.contiguous().view(self._int16).numpy().view(ml_dtypes.bfloat16)
        return x.numpy()

    def forget(self, name: str) -> None:
        del self._tensors[name]


def _load(path: Path) -> Any:
    import torch

    try:
        # timm's trainer saves its flags in a Namespace. PyTorch warns about its own use of deprecated storages.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of PyTorch 1.5 and older cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # unpickling arbitrary bytes raises arbitrary exceptions
        raise UserError(f"{path}: cannot read this PyTorch pickle as weights: {_reason(path, e)}") from e


def _reason(path: Path, error: Exception) -> str:
    import torch

    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        others = []
    if others:
        return (
            f"it holds more than tensors ({', '.join(sorted(others)[:3])}), and loading runs no code. "
            "Save the model's state_dict instead."
        )
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _find_state(checkpoint: Any, path: Path) -> Mapping[str, Any]:
    """Returns the state_dict in a checkpoint: that of the moving average if there is one, as in timm."""
    found, seen = checkpoint, {id(checkpoint)}
    while isinstance(found, Mapping) and not _is_state(found):
        candidates = _candidates(found)
        if not candidates:
            raise _no_state_error(found, path)
        chosen, *rest = candidates
        if id(found[chosen]) in seen:
            raise UserError(
                f"{path}: got a PyTorch pickle whose entry {chosen!r} contains itself, expected a state_dict. Save the "
                "state_dict as a file of its own."
            )
        if rest:  # a choice between several, so it is announced
            logger.warning("%s: loading the entry %r, not %s", path, chosen, first_names(map(repr, rest)))
        else:
            logger.info("%s: loading the entry %r", path, chosen)
        found = found[chosen]
        seen.add(id(found))
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: got a PyTorch pickle of a {type(checkpoint).__name__}, expected a state_dict.")
    return found


def _is_state(value: Mapping[str, Any]) -> bool:
    """Returns whether a dictionary is a state_dict itself, instead of a checkpoint that holds one in an entry.

    A checkpoint may hold a few tensors beside its weights, and a state_dict a few entries beside its tensors.
    """
    known, others = _entries_with_state(value)
    return not known and _count_tensors(value) > max((_count_tensors(value[key]) for key in others), default=0)


def _candidates(checkpoint: Mapping[str, Any]) -> list[str]:
    """Returns the entries of a checkpoint that may hold its weights, preferred first.

    An entry of an unknown name counts only beside one of a known name, which is preferred, or if it is the only one.
    """
    known, others = _entries_with_state(checkpoint)
    return [*known, *others] if known or len(others) == 1 else []


def _entries_with_state(checkpoint: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the entries that hold a state_dict: those of known names, preferred first, and the others."""
    known = [key for key in (*_AVERAGES, *_WEIGHTS) if _holds_state(checkpoint.get(key))]
    others = [key for key, value in checkpoint.items() if key not in known and _holds_state(value)]
    return known, others


def _no_state_error(checkpoint: Mapping[str, Any], path: Path) -> UserError:
    entries = first_names(map(repr, checkpoint), 8) or "none"
    return UserError(
        f"{path}: got a PyTorch pickle without weights at a known place (its entries are {entries}), expected a "
        "state_dict, or one as the entry 'state_dict' or 'model'. Save the state_dict as a file of its own."
    )


def _count_tensors(value: Any) -> int:
    """Returns how many names a value maps to tensors."""
    import torch

    if not isinstance(value, Mapping):
        return 0
    return sum(isinstance(name, str) and isinstance(x, torch.Tensor) for name, x in value.items())


def _holds_state(value: Any) -> bool:
    """Returns whether a value is a state_dict, or a checkpoint with one in an entry of a known name."""
    rest, seen = [value], set()
    while rest:
        each = rest.pop()
        if isinstance(each, Mapping) and id(each) not in seen:
            if _count_tensors(each):
                return True
            seen.add(id(each))  # a pickle can hold a dictionary that contains itself
            rest.extend(each.get(key) for key in (*_AVERAGES, *_WEIGHTS))
    return False

"""PyTorch's own weight files: pickles of a state_dict or of a checkpoint. Reading them needs torch and runs no code."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxvision.errors import UserError, missing_package_error
from jaxvision.weights.weight_file import WeightFile, without_wrappers

logger = logging.getLogger(__name__)

# Keys under which a checkpoint stores its weights, preferred first: the moving averages of timm's trainer, the plain
# weights, the encoder of I-JEPA.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "encoder")


class PickleFile(WeightFile):
    """A PyTorch pickle, read by ``torch.load(weights_only=True)``.

    Args:
      path: a pickle of a state_dict, or of a checkpoint that nests one as timm's trainer does.

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
        if not self._tensors:
            raise UserError(f"{path}: got a PyTorch pickle without weights, expected a state_dict.")
        sparse = [name for name, x in self._tensors.items() if x.layout is not torch.strided]
        if sparse:
            raise UserError(f"{path}: {sparse[0]} is a sparse tensor, expected a dense one. Save it as x.to_dense().")
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
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's trainer saves its flags in a Namespace
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
    found = checkpoint
    while isinstance(found, Mapping):
        key = next((key for key in _NESTED if isinstance(found.get(key), Mapping)), None)
        if key is None:
            return found
        logger.info("%s: loading the entry %r", path, key)
        found = found[key]
    raise UserError(f"{path}: got a PyTorch pickle of a {type(checkpoint).__name__}, expected a state_dict.")

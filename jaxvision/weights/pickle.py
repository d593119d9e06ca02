"""PyTorch's own weight files: the state_dict in a training script's checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.errors import UserError
from jaxvision.weights.torch_file import Tensor, TorchFile
from jaxvision.weights.unpickle import Ignored
from jaxvision.weights.weight_file import WeightFile, first_names, without_wrappers

logger = logging.getLogger(__name__)

# Entries of checkpoints that hold weights, preferred first: moving averages (timm, BasicSR and others; DINO's
# "teacher"), then plain weights (timm, Lightning and MMCV; DeepSpeed's "module"; I-JEPA's "encoder").
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema", "teacher")
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


_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_MAX_VISITS = 10_000_000  # of entries, in search of a state_dict; a checkpoint of 1,000 tensors takes 10,000


class PickleFile(WeightFile):
    """A PyTorch file, read without PyTorch; see `jaxvision.weights.torch_file`.

    Args:
      path: a pickle of a state_dict, or of a checkpoint that nests one as training scripts do.

    Raises:
      UserError: the file is damaged, or it contains no tensors or more than tensors.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = TorchFile(path)
        state = without_wrappers(_Search(path).find_state(self._file.content), path)
        self._tensors = {name: x for name, x in state.items() if isinstance(x, Tensor)}
        self.unused = [name for name in state if name not in self._tensors]
        for name, x in self._tensors.items():
            if x.layout == "sparse":
                raise UserError(f"{path}: {name} is a sparse tensor, expected a dense one. Save it as x.to_dense().")
            if x.layout == "meta":
                raise UserError(
                    f"{path}: {name} is a tensor of PyTorch's meta device, which has no values. "
                    "Load the weights into the model before its state_dict is saved."
                )
        self.shapes = {name: x.shape for name, x in self._tensors.items()}
        self.dtypes = {name: _NAMES.get(x.dtype, f"torch.{x.dtype}") for name, x in self._tensors.items()}

    def tensor(self, name: str) -> np.ndarray:
        return self._file.read(self._tensors[name])

    def forget(self, name: str) -> None:
        self._file.forget(self._tensors[name])


class _Search:
    """The search for the weights in the object that a file holds.

    Args:
      path: the file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._visits = 0

    def find_state(self, checkpoint: Any) -> Mapping[str, Any]:
        """Returns the state_dict in a checkpoint: that of the moving average if there is one, as in timm."""
        found, seen = checkpoint, {id(checkpoint)}
        while isinstance(found, Mapping) and not self._is_state(found):
            candidates = self._candidates(found)
            if not candidates:
                raise _no_state_error(found, self._path)
            chosen, *rest = candidates
            if id(found[chosen]) in seen:
                raise UserError(
                    f"{self._path}: got a PyTorch pickle whose entry {chosen!r} contains itself, expected a "
                    "state_dict. Save the state_dict as a file of its own."
                )
            if rest:  # a choice between several, so it is announced
                logger.warning("%s: loading the entry %r, not %s", self._path, chosen, first_names(map(repr, rest)))
            else:
                logger.info("%s: loading the entry %r", self._path, chosen)
            found = found[chosen]
            seen.add(id(found))
        if not isinstance(found, Mapping):
            name = "plain value" if isinstance(checkpoint, Ignored) else type(checkpoint).__name__
            raise UserError(
                f"{self._path}: got a PyTorch pickle of a {name}, expected a state_dict. Save model.state_dict()."
            )
        return found

    def _is_state(self, value: Mapping[str, Any]) -> bool:
        """Returns whether a dictionary is a state_dict itself, instead of a checkpoint that holds one in an entry.

        A checkpoint may hold a few tensors beside its weights, and a state_dict a few entries beside its tensors.
        """
        known, others = self._entries_with_state(value)
        most = max((self._count_tensors(value[key]) for key in others), default=0)
        return not known and self._count_tensors(value) > most

    def _candidates(self, checkpoint: Mapping[str, Any]) -> list[str]:
        """Returns the entries of a checkpoint that may hold its weights, preferred first.

        An entry of an unknown name counts only beside one of a known name, which is preferred, or if it is the only
        one.
        """
        known, others = self._entries_with_state(checkpoint)
        return [*known, *others] if known or len(others) == 1 else []

    def _entries_with_state(self, checkpoint: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Returns the entries that hold a state_dict: those of known names, preferred first, and the others."""
        known = [key for key in (*_AVERAGES, *_WEIGHTS) if self._holds_state(checkpoint.get(key))]
        others = [key for key, value in checkpoint.items() if key not in known and self._holds_state(value)]
        return known, others

    def _holds_state(self, value: Any) -> bool:
        """Returns whether a value is a state_dict, or a checkpoint with one in an entry of a known name."""
        rest, seen = [value], set()
        while rest:
            each = rest.pop()
            if isinstance(each, Mapping) and id(each) not in seen:
                if self._count_tensors(each):
                    return True
                seen.add(id(each))  # a pickle can hold a dictionary that contains itself
                rest.extend(each.get(key) for key in (*_AVERAGES, *_WEIGHTS))
        return False

    def _count_tensors(self, value: Any) -> int:
        """Returns how many names a value maps to tensors."""
        if not isinstance(value, Mapping):
            return 0
        self._visits += 1 + len(value)
        if self._visits > _MAX_VISITS:
            raise UserError(
                f"{self._path}: got a PyTorch pickle of too many nested dictionaries, expected a state_dict."
            )
        return sum(isinstance(name, str) and isinstance(x, Tensor) for name, x in value.items())


def _no_state_error(checkpoint: Mapping[str, Any], path: Path) -> UserError:
    entries = first_names(map(repr, checkpoint), 8) or "none"
    return UserError(
        f"{path}: got a PyTorch pickle without weights at a known place (its entries are {entries}), expected a "
        "state_dict, or one as the entry 'state_dict' or 'model'. Save the state_dict as a file of its own."
    )

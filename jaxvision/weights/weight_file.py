"""The interface of an open weight file: names, shapes and dtypes are known; tensors are read on request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from jaxvision.errors import UserError

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# torch.compile and DistributedDataParallel, in either order, add these prefixes to every name that they save.
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")
_MAX_NAME = 200  # characters of a name in a message; a damaged file may have names of megabytes


class WeightFile(ABC):
    """An open weight file. `jaxvision.weights.files.open_weights` returns one. `tensor` reads tensors.

    Attributes:
      path: the file.
      shapes: shape of each tensor by name. Prefixes of wrappers, such as ``module.``, are removed from the names.
      dtypes: dtype of each tensor by name, in safetensors' notation, such as ``"F32"``.
      metadata: the file's own key-value pairs; empty for a pickle.
      unused: names of the file's other entries, which are not among the tensors.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str] = MappingProxyType({})
    unused: Sequence[str] = ()

    @abstractmethod
    def tensor(self, name: str) -> np.ndarray:
        """Returns a floating-point tensor. It may be a view of the mapped file."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Releases the memory that reading the tensor took. A view of it stays valid."""


def without_wrappers(tensors: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns `tensors` without the prefixes of torch.compile and DistributedDataParallel in their names.

    Raises:
      UserError: two names are equal without their prefixes.
    """
    found = {}
    for key, value in tensors.items():
        name = str(key)
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        if name in found:
            raise UserError(f"{path}: got the tensor {name!r} twice, once as {key!r}. Remove one of them.")
        found[name] = value
    return found


def first_names(names: Iterable[str], n: int = 3) -> str:
    """Returns the first `n` names as text, with the number of omitted ones. Very long names are shortened.

    >>> first_names("abcde")
    'a, b, c, and 2 more'
    """
    names = list(names)
    rest = f", and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..." for name in names[:n]) + rest

"""Weight files of a larger module: the names of the model's tensors share a prefix, such as ``model.``."""

from __future__ import annotations

import numpy as np

from jaxvision.errors import UserError
from jaxvision.weights.weight_file import WeightFile, first_names


def without_prefix(file: WeightFile, anchor: str) -> WeightFile:
    """Returns the part of a file that contains a model, with the model's own names.

    Lightning saves a model as ``model.*``, a detector as ``backbone.*``, a training script of two networks as
    ``student.*`` and ``teacher.*``. The prefix is the one at which the anchor is found. Tensors without the prefix
    are listed in the part's `unused`.

    Args:
      file: the open file.
      anchor: dotted name of a layer that every file of the model contains: its ``first_conv``. Empty if there is none.

    Returns:
      The part, or `file` itself if its names have no prefix or the anchor is not found.

    Raises:
      UserError: the file contains several such parts.
    """
    key = f"{anchor}.weight"
    prefixes = [name.removesuffix(key) for name in file.shapes if anchor and f".{name}".endswith(f".{key}")]
    # `conv1.weight` is also the end of `layer1.0.conv1.weight`, whose prefix begins with that of the model.
    outer = [each for each in prefixes if not any(each != other and each.startswith(other) for other in prefixes)]
    if len(outer) > 1:
        found = first_names(map(repr, sorted(outer)))
        raise UserError(
            f"{file.path}: got {len(outer)} models, with the prefixes {found}, expected one. Save the tensors of "
            "one of them as a file of their own."
        )
    return _Part(file, outer[0]) if outer and outer[0] else file


class _Part(WeightFile):
    """The tensors of a file whose names begin with a prefix, without that prefix."""

    def __init__(self, file: WeightFile, prefix: str):
        self._file, self._prefix = file, prefix
        self.path, self.metadata = file.path, file.metadata
        names = {name.removeprefix(prefix): name for name in file.shapes if name.startswith(prefix)}
        self.shapes = {name: file.shapes[full] for name, full in names.items()}
        self.dtypes = {name: file.dtypes[full] for name, full in names.items()}
        others = [name for name in file.shapes if not name.startswith(prefix)]
        self.unused = [*others, *file.unused]

    def tensor(self, name: str) -> np.ndarray:
        return self._file.tensor(self._prefix + name)

    def forget(self, name: str) -> None:
        self._file.forget(self._prefix + name)

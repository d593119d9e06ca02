"""Weight files of a larger module: the names of the model's tensors share a prefix, such as ``model.``."""

from __future__ import annotations

import numpy as np

from jaxvision.weights.weight_file import WeightFile


def without_prefix(file: WeightFile, anchor: str) -> WeightFile:
    """Returns the part of a file that contains a model, with the model's own names.

    Lightning saves a model as ``model.*``, a detector as ``backbone.*``, a training script of two networks as
    ``student.*`` and ``teacher.*``. The prefix is the one at which the anchor is found. Tensors without the prefix
    are listed in the part's `unused`.

    Args:
      file: the open file.
      anchor: dotted name of a layer that every file of the model contains: its ``first_conv``. Empty if there is none.

    Returns:
      The part, or `file` itself if its names have no prefix, the anchor is not found, or it is found at several
      prefixes. `match_tensors`, which knows the model's other names, decides whether these are models or blocks of
      another architecture.
    """
    prefixes = find_prefixes(file, anchor)
    return _Part(file, prefixes[0]) if len(prefixes) == 1 and prefixes[0] else file


def find_prefixes(file: WeightFile, anchor: str) -> list[str]:
    """Returns the sorted prefixes at which an anchor is found; the arguments are those of `without_prefix`.

    A prefix with less than half as many tensors as another one is left out: it is that of a layer of the same name in
    another module, such as the head of a detector.
    """
    key = f"{anchor}.weight"
    prefixes = [name.removesuffix(key) for name in file.shapes if anchor and f".{name}".endswith(f".{key}")]
    # `conv1.weight` is also the end of `layer1.0.conv1.weight`, whose prefix begins with that of the model.
    outer = [each for each in prefixes if not any(each != other and each.startswith(other) for other in prefixes)]
    counts = {prefix: sum(name.startswith(prefix) for name in file.shapes) for prefix in outer}
    return sorted(prefix for prefix, count in counts.items() if 2 * count >= max(counts.values()))


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

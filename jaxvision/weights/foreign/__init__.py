"""Weight files of other libraries: recognized by their names, and read under timm's.

Each library has a module with its tables. To add one, state names that only its files contain, and a table from its
names to timm's (`table.Library`), and append it to `LIBRARIES`. Each tensor is converted when it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.weights.foreign import clip, efficientnet_pytorch, google, meta, torchvision, transformers
from jaxvision.weights.foreign.file import ForeignFile, find_prefix
from jaxvision.weights.weight_file import WeightFile

logger = logging.getLogger(__name__)
notes = logging.getLogger("jaxvision.notes")  # the commands print its messages

#: Every library, tried in order.
LIBRARIES = (
    *efficientnet_pytorch.LIBRARIES,
    *torchvision.LIBRARIES,
    *transformers.LIBRARIES,
    *clip.LIBRARIES,
    *google.LIBRARIES,
    *meta.LIBRARIES,
)


def renamed(file: WeightFile) -> WeightFile:
    """Returns a file under timm's names if it is one of another library, else the file itself.

    Raises:
      UserError: two tensors of the file have the same name in timm, or jaxvision has no such model.
    """
    for library in LIBRARIES:
        prefix = find_prefix(file.shapes, library)
        if prefix is None:
            continue
        if library.refusal is not None:
            raise UserError(f"{file.path}: got {library.name}, expected a model that jaxvision has. {library.refusal}")
        return ForeignFile(file, library, prefix)
    return file


def log_origin(file: WeightFile) -> None:
    """Logs which library's names a file has, unless they are timm's."""
    if isinstance(file, ForeignFile):
        notes.info("%s has the tensor names of %s, which are converted to timm's", file.path, file.origin.name)


def log_differences(model: Model, file: WeightFile) -> None:
    """Logs each way in which a model's computation differs from that of the library whose weights it takes."""
    if not isinstance(file, ForeignFile) or file.origin.differences is None:
        return
    if model.architecture in registry.architectures():  # unknown for a model of the user's own
        arguments = registry.default_arguments(model.architecture) | dict(model.options)
        for text in file.origin.differences(file, arguments):
            logger.warning("%s %s", file.path, text)


#: How to set another normalization, except that of a teacher.
_SET_MEAN = (
    "In Python replace mean and std in the preprocess of the classifier; in a config set preprocess.mean and "
    "preprocess.std."
)


def log_normalization(file: WeightFile, mean: Sequence[float], *, advice: str = _SET_MEAN) -> None:
    """Logs that a transform normalizes images by another mean than the library whose weights the file has."""
    if not isinstance(file, ForeignFile) or file.origin.mean is None:
        return
    expected = file.origin.mean
    if len(mean) == len(expected) and not np.allclose(mean, expected, atol=0.01):
        logger.warning(
            "%s: %s normalizes images by the mean %s, but the transform by %s. %s",
            file.path,
            file.origin.name,
            expected,
            tuple(mean),
            advice,
        )

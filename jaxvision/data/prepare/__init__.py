"""Datasets that are downloaded from their authors and written as TFDS would, without TensorFlow."""

from jaxvision.data.prepare.build import find_original, prepare
from jaxvision.data.prepare.originals import ORIGINALS

__all__ = ["ORIGINALS", "find_original", "prepare"]

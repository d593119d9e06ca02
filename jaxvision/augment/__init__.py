"""Augmentation and preprocessing: on the host for files of any shape, on the device for batches.

Names are imported on first use, so that worker processes, which import this package, do not import JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxvision.lazy import lazy_names

if TYPE_CHECKING:
    from jaxvision.augment.decoding import decode
    from jaxvision.augment.host import eval_transform, train_crop
    from jaxvision.augment.mixing import mix
    from jaxvision.augment.on_device import augment_batch, normalize, prepare_eval
    from jaxvision.augment.preprocess import Preprocess
    from jaxvision.augment.rand_augment import RandAugment

__all__ = [
    "Preprocess",
    "RandAugment",
    "augment_batch",
    "decode",
    "eval_transform",
    "mix",
    "normalize",
    "prepare_eval",
    "train_crop",
]

_HOME = {
    "decoding": ("decode",),
    "host": ("eval_transform", "train_crop"),
    "mixing": ("mix",),
    "on_device": ("augment_batch", "normalize", "prepare_eval"),
    "preprocess": ("Preprocess",),
    "rand_augment": ("RandAugment",),
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)

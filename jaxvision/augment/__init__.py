"""Augmentation and preprocessing: on the host for files of any shape, on the device for batches.

Names are imported on first use, so that worker processes, which import this package, do not import JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxvision.augment.host import decode, eval_transform, train_crop
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
    "host": ("decode", "eval_transform", "train_crop"),
    "mixing": ("mix",),
    "on_device": ("augment_batch", "normalize", "prepare_eval"),
    "preprocess": ("Preprocess",),
    "rand_augment": ("RandAugment",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

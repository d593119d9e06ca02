"""timm's weight files in both directions, without PyTorch."""

from __future__ import annotations

from jaxvision.weights.timm.load import Head, load_timm, num_classes
from jaxvision.weights.timm.match import is_in_head
from jaxvision.weights.timm.names import timm_arguments, timm_name, timm_shape, unknown_to_timm, weights
from jaxvision.weights.timm.save import save_timm

__all__ = [
    "Head",
    "is_in_head",
    "load_timm",
    "num_classes",
    "save_timm",
    "timm_arguments",
    "timm_name",
    "timm_shape",
    "unknown_to_timm",
    "weights",
]

"""The models: one module for each family, the registry of architectures, and the base class for your own models.

Importing this package registers the built-in families.
"""

from __future__ import annotations

from typing import Any

from jaxvision.models import (
    efficientnet,
    efficientnet_table,
    resnet,
    resnet_table,
    resnetv2,
    resnetv2_table,
    vit,
    vit_hybrid,
    vit_table,
)
from jaxvision.models.base import FeatureInfo, Model
from jaxvision.models.features import FeatureExtractor
from jaxvision.models.registry import register_model

__all__ = [
    "FeatureExtractor",
    "FeatureInfo",
    "Model",
    "create_efficientnet",
    "create_resnet",
    "create_vit",
    "efficientnet",
    "efficientnet_table",
    "register_model",
    "resnet",
    "resnet_table",
    "resnetv2",
    "resnetv2_table",
    "vit",
    "vit_hybrid",
    "vit_table",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, because `jaxvision.create` itself imports this package.
    if name in ("create_resnet", "create_vit", "create_efficientnet"):
        from jaxvision import create

        return getattr(create, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

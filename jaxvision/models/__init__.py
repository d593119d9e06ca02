"""The families: each file registers its table of variants when it is imported."""

from __future__ import annotations

from typing import Any

from jaxvision.models import efficientnet, resnet, resnetv2, vit, vit_hybrid

__all__ = [
    "create_efficientnet",
    "create_resnet",
    "create_vit",
    "efficientnet",
    "resnet",
    "resnetv2",
    "vit",
    "vit_hybrid",
]


def __getattr__(name: str) -> Any:
    # The one edge that points up: `create` stands on the weights and on this package, so it is fetched on first use.
    if name in ("create_resnet", "create_vit", "create_efficientnet"):
        from jaxvision import create

        return getattr(create, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

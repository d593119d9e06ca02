"""The variants of ResNetV2 under timm's names."""

from __future__ import annotations

from typing import Any

from jaxvision.models import registry
from jaxvision.models.resnetv2 import ResNetV2

R18: dict[str, Any] = {"depths": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "block": "preact_basic"}
R34: dict[str, Any] = {"depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512), "block": "preact_basic"}
R50: dict[str, Any] = {"depths": (3, 4, 6, 3)}
R101: dict[str, Any] = {"depths": (3, 4, 23, 3)}
R152: dict[str, Any] = {"depths": (3, 8, 36, 3)}
BATCH: dict[str, Any] = {"conv": "plain", "norm": "batch"}
D: dict[str, Any] = {"stem": "deep", "avg_down": True}
T: dict[str, Any] = {"stem": "tiered", "avg_down": True}
BIT: dict[str, Any] = {"stem_pool": "zero"}

VARIANTS: dict[str, dict[str, Any]] = {
    "resnetv2_18": {**R18, **BATCH},
    "resnetv2_18d": {**R18, **BATCH, **D},
    "resnetv2_34": {**R34, **BATCH},
    "resnetv2_34d": {**R34, **BATCH, **D},
    "resnetv2_50": {**R50, **BATCH},
    "resnetv2_50d": {**R50, **BATCH, **D},
    "resnetv2_50t": {**R50, **BATCH, **T},
    "resnetv2_101": {**R101, **BATCH},
    "resnetv2_101d": {**R101, **BATCH, **D},
    "resnetv2_152": {**R152, **BATCH},
    "resnetv2_152d": {**R152, **BATCH, **D},
    "resnetv2_50d_gn": {**R50, "conv": "plain", **D},
    "resnetv2_50d_evos": {**R50, "conv": "plain", "norm": "evo", **D},
    "resnetv2_50d_frn": {**R50, "conv": "plain", "norm": "filter_response", **D},
    "resnetv2_50x1_bit": {**R50, **BIT},
    "resnetv2_50x3_bit": {**R50, **BIT, "width_factor": 3, "image_size": 448},
    "resnetv2_101x1_bit": {**R101, **BIT, "image_size": 448},
    "resnetv2_101x3_bit": {**R101, **BIT, "width_factor": 3, "image_size": 448},
    "resnetv2_152x2_bit": {**R152, **BIT, "width_factor": 2},
    "resnetv2_152x4_bit": {**R152, **BIT, "width_factor": 4, "image_size": 480},
}

registry.register("resnetv2", ResNetV2, VARIANTS)

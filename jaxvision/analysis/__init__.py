"""Analysis of a model: where it looks, and what it costs."""

from __future__ import annotations

from jaxvision.analysis.attention import attention_rollout, class_attention
from jaxvision.analysis.cost import Cost, ModelInfo, model_info, operations
from jaxvision.analysis.saliency import explain, grad_cam, overlay

__all__ = [
    "Cost",
    "ModelInfo",
    "attention_rollout",
    "class_attention",
    "explain",
    "grad_cam",
    "model_info",
    "operations",
    "overlay",
]

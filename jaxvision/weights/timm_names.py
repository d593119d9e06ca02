"""timm's names of model arguments, and which of our options timm has no argument for."""

from __future__ import annotations

from typing import Any

from jaxvision.models.base import Model

# timm's argument -> ours. Other changes of shape than these timm cannot be told.
OURS = {
    "img_size": "image_size",
    "in_chans": "in_channels",
    "patch_size": "patch_size",
    "global_pool": "global_pool",
    "mlp_ratio": "mlp_ratio",
    "init_values": "layer_scale",
    "class_token": "class_token",
    "reg_tokens": "reg_tokens",
    "no_embed_class": "no_embed_class",
    "pre_norm": "pre_norm",
    "final_norm": "final_norm",
    "fc_norm": "fc_norm",
    "pool_include_prefix": "pool_include_prefix",
    "dynamic_img_size": "dynamic_image_size",
    "act_layer": "activation",
    "layers": "depths",
    "channels": "widths",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
}

ONLY_AT_LOADING = ("interpolation", "ignore_remainder")  # they change nothing of what a saved model computes


def timm_arguments(model: Model) -> dict[str, Any]:
    arguments: dict[str, Any] = {"in_chans": model.in_channels} if model.in_channels != 3 else {}
    if model.family == "vit":
        arguments["img_size"] = model.image_size
    known = theirs(model)
    return arguments | {known[name]: value for name, value in model.options if name in known}


def theirs(model: Model) -> dict[str, str]:
    found = {ours: name for name, ours in OURS.items()}
    if model.family == "efficientnet":  # its depth is a factor, which timm keeps to itself
        del found["depth"]
    return found

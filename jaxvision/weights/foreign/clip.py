"""The names of OpenAI's CLIP and of open_clip: their image towers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxvision.weights.foreign.table import Arguments, Library, Row, differences, with_batch_axis, zero_bias
from jaxvision.weights.weight_file import WeightFile


def _differences(file: WeightFile, arguments: Arguments) -> Iterator[str]:
    """Yields how a model differs from the file's. Only the state_dict of OpenAI's own archives determines it."""
    if "input_resolution" in file.unused:
        yield from differences(arguments, activation="quick_gelu")
    elif arguments.get("activation") == "gelu":
        yield (
            "does not state its activation, and the model computes GELU. If OpenAI, DFN or MetaCLIP trained it, or the "
            "name of its open_clip model ends in -quickgelu, build the model with activation='quick_gelu'."
        )


def _transposed_bias(kernel: np.ndarray) -> np.ndarray:
    return zero_bias(kernel.T)


_BLOCK = r"transformer\.resblocks\.(\d+)\."
_TOWER = Library(
    name="CLIP (OpenAI or open_clip)",
    signature=(
        "class_embedding",
        "positional_embedding",
        "conv1.weight",
        "transformer.resblocks.0.attn.in_proj_weight",
    ),
    rows=(
        Row(r"class_embedding", "cls_token", with_batch_axis),
        Row(r"positional_embedding", "pos_embed", with_batch_axis),
        Row(r"conv1\.(.+)", r"patch_embed.proj.\1"),
        Row(r"ln_pre\.(.+)", r"norm_pre.\1"),
        Row(r"ln_post\.(.+)", r"norm.\1"),
        Row(_BLOCK + r"ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
        Row(_BLOCK + r"ls_([12])\.(.+)", r"blocks.\1.ls\2.\3"),
        Row(_BLOCK + r"attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        Row(_BLOCK + r"attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
        Row(_BLOCK + r"mlp\.c_fc\.(.+)", r"blocks.\1.mlp.fc1.\2"),
        Row(_BLOCK + r"mlp\.c_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        Row(r"proj", "head.weight", np.transpose),
        Row(r"proj", "head.bias", _transposed_bias),
    ),
    differences=_differences,
)

_RESNET = Library(
    name="CLIP's ResNet (OpenAI or open_clip)",
    signature=("attnpool.positional_embedding", "layer1.0.conv1.weight"),
    refusal="Use one of CLIP's Vision Transformers, or timm's resnet50_clip in PyTorch.",
)

LIBRARIES = (_TOWER, _RESNET)

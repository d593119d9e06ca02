"""The names of torchvision. Its ResNets are not listed, because timm has their names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from jaxvision.augment.preprocess import IMAGENET_MEAN
from jaxvision.weights.foreign.table import Arguments, Library, Row, Shapes, differences
from jaxvision.weights.weight_file import WeightFile

_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."

_VIT = Library(
    name="torchvision",
    signature=("conv_proj.weight", "class_token", "encoder.pos_embedding"),
    rows=(
        Row(r"class_token", "cls_token"),
        Row(r"conv_proj\.(.+)", r"patch_embed.proj.\1"),
        Row(r"encoder\.pos_embedding", "pos_embed"),
        Row(_BLOCK + r"ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
        Row(_BLOCK + r"self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        Row(_BLOCK + r"self_attention\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
        Row(_BLOCK + r"mlp\.(?:0|linear_1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
        Row(_BLOCK + r"mlp\.(?:3|linear_2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        Row(r"encoder\.ln\.(.+)", r"norm.\1"),
        Row(r"heads\.head\.(.+)", r"head.\1"),
    ),
    mean=IMAGENET_MEAN,
)

# The layers of a block in torchvision's order -> in timm's. A convolution is followed by its norm.
_LAYERS = {
    "ir": ("conv_pw bn1", "conv_dw bn2", "se", "conv_pwl bn3"),
    "ds": ("conv_dw bn1", "se", "conv_pw bn2"),
    "er": ("conv_exp bn1", "conv_pwl bn2"),
    "cn": ("conv bn1",),
}


def _efficientnet_names(shapes: Shapes) -> dict[str, str]:
    """Returns the names of the blocks and of the last convolution in timm.

    torchvision numbers the stem, the stages and the last convolution of a model together. Each block is a sequence of
    layers, whose number determines timm's kind of block.

    >>> shapes = {"features.1.0.block.0.0.weight": (32, 1, 3, 3), "features.1.0.block.1.fc1.bias": (8,)}
    >>> _efficientnet_names({**shapes, "features.1.0.block.2.0.weight": (16, 32, 1, 1), "features.2.0.weight": (64,)})
    {'features.1.0.block.0.0.weight': 'blocks.0.0.conv_dw.weight',
     'features.1.0.block.1.fc1.bias': 'blocks.0.0.se.conv_reduce.bias',
     'features.1.0.block.2.0.weight': 'blocks.0.0.conv_pw.weight',
     'features.2.0.weight': 'conv_head.weight'}
    """
    kinds = {len(layers): kind for kind, layers in _LAYERS.items()}
    layers: dict[str, set[str]] = {}
    pattern = re.compile(r"(features\.(\d{1,3})\.(\d+)\.)block\.(\d)\.(\d|fc[12])\.(.+)")
    for found in map(pattern.fullmatch, shapes):
        if found:
            layers.setdefault(found[1], set()).add(found[4])
    parts = {"fc1": "conv_reduce", "fc2": "conv_expand"}
    names = {}
    last = max((int(name.split(".")[1]) for name in shapes if re.match(r"features\.\d{1,3}\.", name)), default=0)
    for name in shapes:
        found = pattern.fullmatch(name)
        if found:
            block, stage, number, layer, part, rest = found.groups()
            kind = kinds.get(len(layers[block]))
            if kind is None or int(layer) >= len(_LAYERS[kind]):
                continue  # of another model; loading reports it
            modules = _LAYERS[kind][int(layer)].split()
            module = f"se.{parts[part]}" if part in parts else modules[min(int(part), len(modules) - 1)]
            names[name] = f"blocks.{int(stage) - 1}.{number}.{module}.{rest}"
        elif found := re.fullmatch(rf"features\.{last}\.([01])\.(.+)", name):
            names[name] = f"{('conv_head', 'bn2')[int(found[1])]}.{found[2]}"
    return names


def _efficientnet_differences(file: WeightFile, arguments: Arguments) -> Iterator[str]:
    """Yields how a model differs from torchvision's: B5 and larger, and V2, have another epsilon than B0 to B4."""
    is_v2 = not any(re.fullmatch(r"blocks\.0\.0\.se\..+", name) for name in file.shapes)
    features = file.shapes.get("bn2.weight", (0,))[0]
    return differences(arguments, padding="torch", epsilon=1e-3 if is_v2 or features >= 2048 else 1e-5)


_EFFICIENTNET = Library(
    name="torchvision",
    signature=("features.0.0.weight", "features.0.1.running_mean", "features.1.0.block.0.0.weight"),
    renumber=_efficientnet_names,
    rows=(
        Row(r"features\.0\.0\.(.+)", r"conv_stem.\1"),
        Row(r"features\.0\.1\.(.+)", r"bn1.\1"),
        Row(r"classifier\.1\.(.+)", r"classifier.\1"),
    ),
    differences=_efficientnet_differences,
)

LIBRARIES = (_VIT, _EFFICIENTNET)

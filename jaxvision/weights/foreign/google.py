"""The names of Google's NumPy archives: ViT and hybrids of vision_transformer, big_vision, and ResNet (BiT).

Slashes in their names are read as dots.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from jaxvision.weights.foreign.table import Arguments, Library, Row, Shapes, differences
from jaxvision.weights.weight_file import WeightFile

_MEAN = (0.5, 0.5, 0.5)


def _kernel(kernel: np.ndarray) -> np.ndarray:
    """Returns [*space, in, out] as [out, in, *space]."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _to_heads(kernel: np.ndarray) -> np.ndarray:
    """Returns a projection to heads [d, heads, d / heads] as [d, d]."""
    return kernel.reshape(kernel.shape[0], -1).T


def _from_heads(kernel: np.ndarray) -> np.ndarray:
    """Returns a projection from heads [heads, d / heads, d] as [d, d]."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def _vector(tensor: np.ndarray) -> np.ndarray:
    """Returns a bias of heads, or a scale with axes of length 1, as a vector."""
    return tensor.reshape(-1)


def _dense(pattern: str, name: str, convert: Callable[[np.ndarray], np.ndarray] = _kernel, part: int = 0) -> list[Row]:
    """Returns the rows of a linear layer or a convolution."""
    return [
        Row(rf"{pattern}\.kernel", f"{name}.weight", convert, part),
        Row(rf"{pattern}\.bias", f"{name}.bias", _vector, part),
    ]


def _norm(pattern: str, name: str) -> list[Row]:
    return [
        Row(rf"{pattern}\.(?:scale|gamma)", f"{name}.weight", _vector),
        Row(rf"{pattern}\.(?:bias|beta)", f"{name}.bias", _vector),
    ]


def _vit_differences(file: WeightFile, arguments: Arguments) -> Iterator[str]:
    """Yields how a model differs from Google's, whose GELU is JAX's default, the approximation."""
    yield from differences(arguments, activation="gelu_tanh")
    positions = file.shapes.get("pos_embed", (0, 0))[1]
    if "cls_token" in file.shapes and math.isqrt(positions) ** 2 == positions:
        yield from differences(arguments, no_embed_class=True)


_BLOCK = r"Transformer\.encoderblock_(\d+)\."
_VIT_ROWS = (
    *_dense("embedding", "patch_embed.proj"),
    Row("cls", "cls_token"),
    Row(r"(?:Transformer\.)?(?:posembed_input\.)?pos_embedding", "pos_embed"),
    *_norm(_BLOCK + "LayerNorm_0", r"blocks.\1.norm1"),
    *_norm(_BLOCK + "LayerNorm_[12]", r"blocks.\1.norm2"),
    *(
        row
        for part, name in enumerate(("query", "key", "value"))
        for row in _dense(
            _BLOCK + rf"MultiHeadDotProductAttention_[01]\.{name}", r"blocks.\1.attn.qkv", _to_heads, part
        )
    ),
    *_dense(_BLOCK + r"MultiHeadDotProductAttention_[01]\.out", r"blocks.\1.attn.proj", _from_heads),
    *_dense(_BLOCK + r"MlpBlock_[03]\.Dense_0", r"blocks.\1.mlp.fc1"),
    *_dense(_BLOCK + r"MlpBlock_[03]\.Dense_1", r"blocks.\1.mlp.fc2"),
    *_norm(r"Transformer\.encoder_norm", "norm"),
    # attention pooling
    Row(r"MAPHead_0\.probe", "attn_pool.latent"),
    *_dense(r"MAPHead_0\.MultiHeadDotProductAttention_0\.query", "attn_pool.q", _to_heads),
    *_dense(r"MAPHead_0\.MultiHeadDotProductAttention_0\.key", "attn_pool.kv", _to_heads, 0),
    *_dense(r"MAPHead_0\.MultiHeadDotProductAttention_0\.value", "attn_pool.kv", _to_heads, 1),
    *_dense(r"MAPHead_0\.MultiHeadDotProductAttention_0\.out", "attn_pool.proj", _from_heads),
    *_norm(r"MAPHead_0\.LayerNorm_0", "attn_pool.norm"),
    *_dense(r"MAPHead_0\.MlpBlock_0\.Dense_0", "attn_pool.mlp.fc1"),
    *_dense(r"MAPHead_0\.MlpBlock_0\.Dense_1", "attn_pool.mlp.fc2"),
)


def _unit(template: str) -> Callable[[re.Match[str]], str]:
    """Returns the name of a layer, of which `template` holds timm's, from a match of its stage and block."""
    return lambda match: template.format(int(match[1]) - 1, int(match[2]) - 1, *match.groups()[2:])


_UNIT = r"block(\d)\.unit(\d{1,3})\."
_BLOCK_OF = "stages.{}.blocks.{}"


def _unit_rows(prefix: str = "") -> Iterator[Row]:
    """Yields the rows of the units of a ResNetV2, which is the module `prefix` of the model in timm."""
    block = prefix + _BLOCK_OF
    yield Row(_UNIT + r"conv(\d)\.kernel", _unit(f"{block}.conv{{}}.weight"), _kernel)
    yield Row(_UNIT + r"gn(\d)\.scale", _unit(f"{block}.norm{{}}.weight"), _vector)
    yield Row(_UNIT + r"gn(\d)\.bias", _unit(f"{block}.norm{{}}.bias"), _vector)
    yield Row(_UNIT + r"conv_proj\.kernel", _unit(f"{block}.downsample.conv.weight"), _kernel)
    yield Row(_UNIT + r"gn_proj\.scale", _unit(f"{block}.downsample.norm.weight"), _vector)
    yield Row(_UNIT + r"gn_proj\.bias", _unit(f"{block}.downsample.norm.bias"), _vector)


def _hybrid_rows(stem: str) -> Iterator[Row]:
    """Yields the rows of the convolutional network before the patches; `stem` is its first module."""
    yield Row(r"conv_root\.kernel", f"{stem}.conv.weight", _kernel)
    yield from _norm("gn_root", f"{stem}.norm")
    yield from _unit_rows("patch_embed.backbone.")


def _drop_representation(shapes: Shapes) -> dict[str, str]:
    """Drops the head of a file with a layer before it, which timm's models do not have, by the row of that layer."""
    if "pre_logits.bias" not in shapes:
        return {}
    return {name: f"pre_logits.{name}" for name in shapes if name.startswith("head.")}


def _vit(name: str, extra: tuple[str, ...], rows: Iterable[Row]) -> Library:
    return Library(
        name=name,
        signature=("embedding.kernel", "Transformer.encoder_norm.scale", *extra),
        stacked=("Transformer.encoderblock.", "Transformer.encoderblock_{}."),
        renumber=_drop_representation,
        rows=(*_VIT_ROWS, *_dense("head", "head"), Row(r"pre_logits\..+", None), *rows),
        differences=_vit_differences,
        mean=_MEAN,
    )


_R_VIT = _vit(
    "Google's vision_transformer (hybrid)",
    ("conv_root.kernel", "block1.unit1.conv1.kernel"),
    _hybrid_rows("patch_embed.backbone.stem"),
)
_STEM_VIT = _vit("Google's vision_transformer (hybrid)", ("conv_root.kernel",), _hybrid_rows("patch_embed.backbone"))
_VIT = _vit("Google's vision_transformer or big_vision", (), ())

_CONV = r"standardized_conv2d(?:_\d+)?"


def _bit_layer(template: str) -> Callable[[re.Match[str]], str]:
    """Returns the name of a layer that is called a, b or c in the original files."""
    return lambda match: template.format(int(match[1]) - 1, int(match[2]) - 1, " abc".index(match[3]))


_BIT = Library(
    name="BiT",
    signature=("group_norm.gamma", "block1.unit01.a.group_norm.gamma"),
    rows=(
        *_dense(rf"root_block\.{_CONV}", "stem.conv"),
        *_norm("group_norm", "norm"),
        *_dense(r"head\.conv2d", "head.fc"),
        Row(_UNIT + rf"([abc])\.{_CONV}\.kernel", _bit_layer(f"{_BLOCK_OF}.conv{{}}.weight"), _kernel),
        Row(_UNIT + r"([abc])\.group_norm\.gamma", _bit_layer(f"{_BLOCK_OF}.norm{{}}.weight"), _vector),
        Row(_UNIT + r"([abc])\.group_norm\.beta", _bit_layer(f"{_BLOCK_OF}.norm{{}}.bias"), _vector),
        Row(_UNIT + rf"a\.proj\.{_CONV}\.kernel", _unit(f"{_BLOCK_OF}.downsample.conv.weight"), _kernel),
    ),
    differences=lambda file, arguments: differences(arguments, stem_pool="zero"),
    mean=_MEAN,
)
_BIG_VISION_BIT = Library(
    name="big_vision (BiT)",
    signature=("root_block.conv_root.kernel", "norm-pre-head.scale"),
    rows=(
        *_dense(r"root_block\.conv_root", "stem.conv"),
        *_norm("norm-pre-head", "norm"),
        *_dense("head", "head.fc", lambda kernel: _kernel(kernel)[..., None, None]),
        *_unit_rows(),
    ),
    differences=lambda file, arguments: differences(arguments, stem_pool="torch"),
    mean=_MEAN,
)

LIBRARIES = (_R_VIT, _STEM_VIT, _VIT, _BIT, _BIG_VISION_BIT)

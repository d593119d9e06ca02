"""Meta's own repositories: DINOv2 and MAE. The backbones of DINO have timm's names."""

from __future__ import annotations

from jaxvision.augment.preprocess import IMAGENET_MEAN
from jaxvision.weights.foreign.table import Library, Row

_PATCHES = "patch_embed.proj.weight"
_DINOV2_ROWS = (
    Row(r"mask_token", None),
    # SwiGLU, of the largest model
    Row(r"(blocks\.\d+\.mlp)\.w12\.(.+)", r"\1.fc1.\2"),
    Row(r"(blocks\.\d+\.mlp)\.w3\.(.+)", r"\1.fc2.\2"),
)
_DINOV2_REGISTERS = Library(
    name="Meta's DINOv2 with registers",
    signature=(_PATCHES, "register_tokens", "cls_token", "pos_embed", "mask_token"),
    rows=(
        Row(r"register_tokens", "reg_token"),
        # timm adds no positions to the tokens before the patches, so the class token includes its own.
        Row(r"cls_token", "cls_token", is_added=True),
        Row(r"pos_embed", "cls_token", lambda x: x[:, :1], part=1, is_added=True),
        Row(r"pos_embed", "pos_embed", lambda x: x[:, 1:]),
        *_DINOV2_ROWS,
    ),
    mean=IMAGENET_MEAN,
)
_DINOV2 = Library(
    name="Meta's DINOv2",
    signature=(_PATCHES, "mask_token", "blocks.0.ls1.gamma"),
    rows=_DINOV2_ROWS,
    mean=IMAGENET_MEAN,
)
_MAE = Library(
    name="Meta's MAE",
    signature=(_PATCHES, "mask_token", "decoder_embed.weight"),
    rows=(Row(r"mask_token|decoder_.+", None),),
    mean=IMAGENET_MEAN,
)

LIBRARIES = (_DINOV2_REGISTERS, _DINOV2, _MAE)

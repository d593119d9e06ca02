"""The names of Hugging Face's transformers: in files, and in version 5 in memory, where they differ."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxvision.weights.foreign.table import Arguments, Library, Row, differences, with_batch_axis, zero_bias
from jaxvision.weights.weight_file import WeightFile

# transformers' name of an activation -> ours.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}


def _config(path: Path) -> Mapping[str, Any]:
    """Returns the contents of ``config.json`` beside a file, of its vision tower if it has several; else nothing."""
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, Mapping) or "model_type" not in config:
        return {}
    vision = config.get("vision_config")
    return vision if isinstance(vision, Mapping) else config


def _differences(file: WeightFile, arguments: Arguments) -> Iterator[str]:
    """Yields how a model differs from transformers' ViT, DeiT or ViTMAE. The defaults are those of transformers."""
    config = _config(file.path)
    activation, epsilon = str(config.get("hidden_act", "gelu")), config.get("layer_norm_eps", 1e-12)
    yield from differences(arguments, activation=_ACTIVATIONS.get(activation, activation))
    ours = _epsilon(arguments["norm"]) if "norm" in arguments else epsilon
    if ours != epsilon:
        yield (
            f"is computed with layer_norm_eps={epsilon!r} by transformers, but with {ours!r} here and by the authors "
            "of ViT, DeiT and MAE, so the outputs differ slightly."
        )


def _epsilon(norm: Any) -> float:
    """Returns the epsilon of a class of norms, or of a partial of one."""
    if isinstance(norm, functools.partial) and "epsilon" in norm.keywords:
        return norm.keywords["epsilon"]
    return inspect.signature(norm.__init__).parameters["epsilon"].default


_BLOCK = r"(?:encoder\.)?layers?\.(\d+)\."
_VIT_ROWS = (
    Row(r"embeddings\.cls_token", "cls_token"),
    Row(r"embeddings\.position_embeddings", "pos_embed"),
    Row(r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    Row(r"embeddings\.mask_token", None),
    *(
        Row(_BLOCK + rf"attention\.(?:attention\.{long}|{long[0]}_proj)\.(.+)", r"blocks.\1.attn.qkv.\2", part=part)
        for part, long in enumerate(("query", "key", "value"))
    ),
    Row(_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
    Row(r"layernorm\.(.+)", r"norm.\1"),
    Row(r"pooler\..+", None),
)
_DEIT_ROWS = (
    *_VIT_ROWS,
    Row(_BLOCK + r"layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
    Row(_BLOCK + r"layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
    Row(_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    Row(_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    Row(r"embeddings\.distillation_token", "dist_token"),
    Row(r"(?:cls_)?classifier\.(.+)", r"head.\1"),
    Row(r"distillation_classifier\.(.+)", r"head_dist.\1"),
    Row(r"decoder\..+", None),  # of ViTMAE, and of the simple masked image model
)
_DINOV2_ROWS = (
    *_VIT_ROWS,
    Row(_BLOCK + r"(norm[12])\.(.+)", r"blocks.\1.\2.\3"),
    Row(_BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    Row(_BLOCK + r"mlp\.(?:fc1|weights_in)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    Row(_BLOCK + r"mlp\.(?:fc2|weights_out|down_proj)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    Row(_BLOCK + r"mlp\.gate_proj\.(.+)", r"blocks.\1.mlp.fc1.\2", part=0),
    Row(_BLOCK + r"mlp\.up_proj\.(.+)", r"blocks.\1.mlp.fc1.\2", part=1),
    Row(r"classifier\..+", None),  # takes the class token beside the mean of the patches; timm has no such head
)
_EMBEDDINGS = (
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.cls_token",
    "embeddings.position_embeddings",
)
_LAYER_SCALE = "encoder.layer.0.layer_scale1.lambda1"

_DINOV2_REGISTERS = Library(
    name="transformers (DINOv2 with registers)",
    signature=(*_EMBEDDINGS, _LAYER_SCALE, "embeddings.register_tokens"),
    modules=("dinov2_with_registers.",),
    rows=(
        Row(r"embeddings\.register_tokens", "reg_token"),
        # timm adds no positions to the tokens before the patches, so the class token includes its own.
        Row(r"embeddings\.cls_token", "cls_token", is_added=True),
        Row(r"embeddings\.position_embeddings", "cls_token", lambda x: x[:, :1], part=1, is_added=True),
        Row(r"embeddings\.position_embeddings", "pos_embed", lambda x: x[:, 1:]),
        *_DINOV2_ROWS[2:],
    ),
)
_DINOV2 = Library(
    name="transformers (DINOv2)",
    signature=(*_EMBEDDINGS, _LAYER_SCALE),
    modules=("dinov2.",),
    rows=_DINOV2_ROWS,
)
_VIT = Library(
    name="transformers",
    signature=_EMBEDDINGS,
    modules=("vit.", "deit."),
    rows=_DEIT_ROWS,
    differences=_differences,
)


def _stage(template: str) -> Any:
    """Returns the name of a layer, of which `template` holds timm's, from a match of its stage, block and number."""
    return lambda match: template.format(
        stage=int(match["stage"]) + 1,
        block=match["block"],
        number=int(match.groupdict().get("number") or 0) + 1,
        rest=match["rest"],
    )


_STAGE = r"encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)\."
_RESNET = Library(
    name="transformers",
    signature=("embedder.embedder.convolution.weight", "encoder.stages.0.layers.0.layer.0.convolution.weight"),
    modules=("resnet.",),
    rows=(
        Row(r"embedder\.embedder\.convolution\.(.+)", r"conv1.\1"),
        Row(r"embedder\.embedder\.normalization\.(.+)", r"bn1.\1"),
        Row(
            _STAGE + r"layer\.(?P<number>\d)\.convolution\.(?P<rest>.+)",
            _stage("layer{stage}.{block}.conv{number}.{rest}"),
        ),
        Row(
            _STAGE + r"layer\.(?P<number>\d)\.normalization\.(?P<rest>.+)",
            _stage("layer{stage}.{block}.bn{number}.{rest}"),
        ),
        Row(_STAGE + r"shortcut\.convolution\.(?P<rest>.+)", _stage("layer{stage}.{block}.downsample.0.{rest}")),
        Row(_STAGE + r"shortcut\.normalization\.(?P<rest>.+)", _stage("layer{stage}.{block}.downsample.1.{rest}")),
        Row(r"classifier\.1\.(.+)", r"fc.\1"),
    ),
)


def _clip_differences(file: WeightFile, arguments: Arguments) -> Iterator[str]:
    if _config(file.path):
        activation = str(_config(file.path).get("hidden_act", "quick_gelu"))  # the default of transformers
        yield from differences(arguments, activation=_ACTIVATIONS.get(activation, activation))
    elif arguments.get("activation") == "gelu":
        yield (
            "has no config.json beside it that states its activation, and the model computes GELU. If hidden_act is "
            "quick_gelu there, as for OpenAI's weights, build the model with activation='quick_gelu'."
        )


_CLIP_BLOCK = r"encoder\.layers\.(\d+)\."
_CLIP = Library(
    name="transformers (CLIP)",
    signature=("embeddings.patch_embedding.weight", "embeddings.class_embedding", "pre_layrnorm.weight"),
    modules=("vision_model.",),
    rows=(
        Row(r"embeddings\.class_embedding", "cls_token", with_batch_axis),
        Row(r"embeddings\.position_embedding\.weight", "pos_embed", with_batch_axis),
        Row(r"embeddings\.position_ids", None),
        Row(r"embeddings\.patch_embedding\.(.+)", r"patch_embed.proj.\1"),
        Row(r"pre_layrnorm\.(.+)", r"norm_pre.\1"),
        Row(r"post_layernorm\.(.+)", r"norm.\1"),
        *(
            Row(_CLIP_BLOCK + rf"self_attn\.{name}_proj\.(.+)", r"blocks.\1.attn.qkv.\2", part=part)
            for part, name in enumerate("qkv")
        ),
        Row(_CLIP_BLOCK + r"self_attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
        Row(_CLIP_BLOCK + r"layer_norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
        Row(_CLIP_BLOCK + r"(mlp\.fc[12])\.(.+)", r"blocks.\1.\2.\3"),
        Row(r"visual_projection\.weight", "head.weight"),
        Row(r"visual_projection\.weight", "head.bias", zero_bias),
        Row(r"text_model\..+|text_projection\..+|logit_scale", None),
    ),
    differences=_clip_differences,
)

LIBRARIES = (_DINOV2_REGISTERS, _DINOV2, _VIT, _RESNET, _CLIP)

"""The variants of the Vision Transformer under timm's names: sizes, options of each kind and a row for each variant."""

from __future__ import annotations

import functools
from typing import Any

from jaxvision.models import registry
from jaxvision.models.layers.attention import Attention, DifferentialAttention
from jaxvision.models.layers.mlp import GluMlp, Mlp, SwiGlu
from jaxvision.models.layers.norm import LayerNorm, RMSNorm
from jaxvision.models.layers.patch import PatchEmbed
from jaxvision.models.vit import VisionTransformer
from jaxvision.models.vit_blocks import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)


def _size(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}


def _row(size: dict[str, Any], patch_size: int, image_size: int, *kinds: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {**size, "patch_size": patch_size, "image_size": image_size}
    for kind in kinds:
        row |= kind
    return row | more


_TINY = _size(192, 12, 3)
_SMALL = _size(384, 12, 6)
_MEDIUM = _size(512, 12, 8)
_MEDIUMD = _size(512, 20, 8)
_BETWIXT = _size(640, 12, 10)
_BASE = _size(768, 12, 12)
_PLUS = _size(896, 12, 14)
_LARGE = _size(1024, 24, 16)
_HUGE = _size(1280, 32, 16)
_GIANT = _size(1408, 40, 16, 48 / 11)
_GIANTOPT = _size(1536, 40, 16)
_GIGANTIC = _size(1664, 48, 16, 64 / 13)
_WEE = _size(256, 14, 4, 5.0)
_PWEE = _size(256, 16, 4, 5.0)
_LITTLE = _size(320, 14, 5, 5.6)
_SO150M = _size(896, 18, 14, 2.572)
_SO150M2 = _size(832, 21, 13, 34 / 13)
_SO400M = _size(1152, 27, 16, 3.7362)
_DINO_GIANT = _size(1536, 40, 24, 5.33334) | {"activation": "silu", "block": functools.partial(Block, mlp=GluMlp)}
_AIM_LARGE = _size(1024, 24, 8, 2.75)
_AIM_HUGE = _size(1536, 24, 12, 2.6667)
_AIM_1B = _size(2048, 24, 16, 2.75)
_AIM_3B = _size(3072, 24, 24, 2.6667)

_LAYER_NORM_5 = functools.partial(LayerNorm, epsilon=1e-5)
_RMS_NORM_5 = functools.partial(RMSNorm, epsilon=1e-5)
_NO_QKV_BIAS = functools.partial(Attention, qkv_bias=False)

_MIIL = {"block": functools.partial(Block, attention=_NO_QKV_BIAS)}
_GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_GAP_NO_BIAS = _GAP | _MIIL | {"layer_scale": 1e-6}
_MAP = {"class_token": False, "global_pool": "map"}
_CLIP = {"pre_norm": True, "norm": _LAYER_NORM_5}
_QUICK = {"activation": "quick_gelu"}
_TANH = {"activation": "gelu_tanh"}
_DEIT3 = {"no_embed_class": True, "layer_scale": 1e-6}
_FLEXI = {"no_embed_class": True, "interpolation": "bilinear"}
_SO150_REG = {"class_token": False, "reg_tokens": 1, "global_pool": "avg", "layer_scale": 1e-5} | _MIIL
_DIFF = {"block": functools.partial(Block, attention=DifferentialAttention)}
_PARALLEL = {"block": ParallelScalingBlock}
_DIFF_PARALLEL = {"block": DiffParallelScalingBlock}
_THINGS = {"block": ParallelThingsBlock, "layer_scale": 1e-5}
_POST = {
    "class_token": False,
    "global_pool": "avg",
    "layer_scale": 1e-5,
    "block": functools.partial(ResPostBlock, attention=_NO_QKV_BIAS),
}
_XP = {
    "pre_norm": True,
    "no_embed_class": True,
    "norm": RMSNorm,
    "block": functools.partial(ParallelScalingBlock, qkv_bias=False, qk_norm=RMSNorm),
}
_AIM = _GAP | {
    "activation": "silu",
    "norm": _RMS_NORM_5,
    "embed": functools.partial(PatchEmbed, norm=_RMS_NORM_5),
    "block": functools.partial(
        Block,
        attention=functools.partial(Attention, qkv_bias=False, proj_bias=False),
        mlp=functools.partial(SwiGlu, use_bias=False),
    ),
}
_BEIT3 = {
    "global_pool": "avg",
    "norm": _LAYER_NORM_5,
    "block": functools.partial(
        Block,
        attention=functools.partial(Attention, out_norm=_LAYER_NORM_5),
        mlp=functools.partial(Mlp, norm=_LAYER_NORM_5),
    ),
}


def _tokens(reg_tokens: int) -> dict[str, Any]:
    return {"reg_tokens": reg_tokens, "no_embed_class": True}


def _regs(reg_tokens: int) -> dict[str, Any]:
    return _tokens(reg_tokens) | {"class_token": False, "global_pool": "avg", "layer_scale": 1e-5}


VARIANTS: dict[str, dict[str, Any]] = {
    # augreg, the original weights, DINO, MAE, SAM, MIIL: one class token, learned positions
    "vit_tiny_patch16_224": _row(_TINY, 16, 224),
    "vit_tiny_patch16_384": _row(_TINY, 16, 384),
    "vit_small_patch16_224": _row(_SMALL, 16, 224),
    "vit_small_patch16_384": _row(_SMALL, 16, 384),
    "vit_small_patch32_224": _row(_SMALL, 32, 224),
    "vit_small_patch32_384": _row(_SMALL, 32, 384),
    "vit_small_patch8_224": _row(_SMALL, 8, 224),
    "vit_base_patch16_224": _row(_BASE, 16, 224),
    "vit_base_patch16_224_miil": _row(_BASE, 16, 224, _MIIL),
    "vit_base_patch16_384": _row(_BASE, 16, 384),
    "vit_base_patch32_224": _row(_BASE, 32, 224),
    "vit_base_patch32_384": _row(_BASE, 32, 384),
    "vit_base_patch8_224": _row(_BASE, 8, 224),
    "vit_large_patch14_224": _row(_LARGE, 14, 224),
    "vit_large_patch16_224": _row(_LARGE, 16, 224),
    "vit_large_patch16_384": _row(_LARGE, 16, 384),
    "vit_large_patch32_224": _row(_LARGE, 32, 224),
    "vit_large_patch32_384": _row(_LARGE, 32, 384),
    "vit_huge_patch14_224": _row(_HUGE, 14, 224),
    "vit_giant_patch14_224": _row(_GIANT, 14, 224),
    "vit_gigantic_patch14_224": _row(_GIGANTIC, 14, 224),
    # no class token; mean of the patches
    "vit_medium_patch16_gap_240": _row(_MEDIUM, 16, 240, _GAP_NO_BIAS),
    "vit_medium_patch16_gap_256": _row(_MEDIUM, 16, 256, _GAP_NO_BIAS),
    "vit_medium_patch16_gap_384": _row(_MEDIUM, 16, 384, _GAP_NO_BIAS),
    "vit_betwixt_patch16_gap_256": _row(_BETWIXT, 16, 256, _GAP_NO_BIAS),
    "vit_base_patch16_gap_224": _row(_size(768, 12, 16), 16, 224, _GAP),
    "vit_huge_patch14_gap_224": _row(_HUGE, 14, 224, _GAP),
    "vit_huge_patch16_gap_448": _row(_HUGE, 16, 448, _GAP),
    "vit_giant_patch16_gap_224": _row(_GIANT, 16, 224, _GAP),
    # class token, but mean of the patches: EVA (https://arxiv.org/abs/2211.07636)
    "eva_large_patch14_196": _row(_LARGE, 14, 196, global_pool="avg"),
    "eva_large_patch14_336": _row(_LARGE, 14, 336, global_pool="avg"),
    # CLIP (https://arxiv.org/abs/2103.00020) and its successors
    "vit_xsmall_patch16_clip_224": _row(_size(256, 10, 4), 16, 224, _CLIP),
    "vit_medium_patch16_clip_224": _row(_MEDIUM, 16, 224, _CLIP),
    "vit_medium_patch32_clip_224": _row(_MEDIUM, 32, 224, _CLIP),
    "vit_betwixt_patch32_clip_224": _row(_BETWIXT, 32, 224, _CLIP),
    "vit_base_patch16_clip_224": _row(_BASE, 16, 224, _CLIP),
    "vit_base_patch16_clip_384": _row(_BASE, 16, 384, _CLIP),
    "vit_base_patch32_clip_224": _row(_BASE, 32, 224, _CLIP),
    "vit_base_patch32_clip_256": _row(_BASE, 32, 256, _CLIP),
    "vit_base_patch32_clip_384": _row(_BASE, 32, 384, _CLIP),
    "vit_base_patch32_clip_448": _row(_BASE, 32, 448, _CLIP),
    "vit_base_patch16_plus_clip_240": _row(_PLUS, 16, 240, _CLIP),
    "vit_large_patch14_clip_224": _row(_LARGE, 14, 224, _CLIP),
    "vit_large_patch14_clip_336": _row(_LARGE, 14, 336, _CLIP),
    "vit_huge_patch14_clip_224": _row(_HUGE, 14, 224, _CLIP),
    "vit_huge_patch14_clip_336": _row(_HUGE, 14, 336, _CLIP),
    "vit_huge_patch14_clip_378": _row(_HUGE, 14, 378, _CLIP),
    "vit_giant_patch14_clip_224": _row(_GIANT, 14, 224, _CLIP),
    "vit_gigantic_patch14_clip_224": _row(_GIGANTIC, 14, 224, _CLIP),
    "vit_gigantic_patch14_clip_378": _row(_GIGANTIC, 14, 378, _CLIP),
    # CLIP as OpenAI, DFN and MetaCLIP trained it
    "vit_base_patch16_clip_quickgelu_224": _row(_BASE, 16, 224, _CLIP, _QUICK),
    "vit_base_patch32_clip_quickgelu_224": _row(_BASE, 32, 224, _CLIP, _QUICK),
    "vit_large_patch14_clip_quickgelu_224": _row(_LARGE, 14, 224, _CLIP, _QUICK),
    "vit_large_patch14_clip_quickgelu_336": _row(_LARGE, 14, 336, _CLIP, _QUICK),
    "vit_huge_patch14_clip_quickgelu_224": _row(_HUGE, 14, 224, _CLIP, _QUICK),
    "vit_huge_patch14_clip_quickgelu_378": _row(_HUGE, 14, 378, _CLIP, _QUICK),
    "vit_gigantic_patch14_clip_quickgelu_224": _row(_GIGANTIC, 14, 224, _CLIP, _QUICK),
    # SigLIP (https://arxiv.org/abs/2303.15343): attention pooling
    "vit_base_patch16_siglip_224": _row(_BASE, 16, 224, _MAP),
    "vit_base_patch16_siglip_256": _row(_BASE, 16, 256, _MAP),
    "vit_base_patch16_siglip_384": _row(_BASE, 16, 384, _MAP),
    "vit_base_patch16_siglip_512": _row(_BASE, 16, 512, _MAP),
    "vit_base_patch32_siglip_256": _row(_BASE, 32, 256, _MAP, _TANH),
    "vit_large_patch16_siglip_256": _row(_LARGE, 16, 256, _MAP),
    "vit_large_patch16_siglip_384": _row(_LARGE, 16, 384, _MAP),
    "vit_large_patch16_siglip_512": _row(_LARGE, 16, 512, _MAP, _TANH),
    "vit_so400m_patch14_siglip_224": _row(_SO400M, 14, 224, _MAP),
    "vit_so400m_patch14_siglip_378": _row(_SO400M, 14, 378, _MAP),
    "vit_so400m_patch14_siglip_384": _row(_SO400M, 14, 384, _MAP, ignore_remainder=True),
    "vit_so400m_patch16_siglip_256": _row(_SO400M, 16, 256, _MAP, _TANH),
    "vit_so400m_patch16_siglip_384": _row(_SO400M, 16, 384, _MAP, _TANH),
    "vit_so400m_patch16_siglip_512": _row(_SO400M, 16, 512, _MAP, _TANH),
    "vit_giantopt_patch16_siglip_256": _row(_GIANTOPT, 16, 256, _MAP, _TANH),
    "vit_giantopt_patch16_siglip_384": _row(_GIANTOPT, 16, 384, _MAP, _TANH),
    # SigLIP without attention pooling, and PaliGemma (https://arxiv.org/abs/2407.07726)
    "vit_base_patch16_siglip_gap_224": _row(_BASE, 16, 224, _GAP),
    "vit_base_patch16_siglip_gap_256": _row(_BASE, 16, 256, _GAP),
    "vit_base_patch16_siglip_gap_384": _row(_BASE, 16, 384, _GAP),
    "vit_base_patch16_siglip_gap_512": _row(_BASE, 16, 512, _GAP),
    "vit_base_patch32_siglip_gap_256": _row(_BASE, 32, 256, _GAP, _TANH),
    "vit_large_patch16_siglip_gap_256": _row(_LARGE, 16, 256, _GAP),
    "vit_large_patch16_siglip_gap_384": _row(_LARGE, 16, 384, _GAP),
    "vit_large_patch16_siglip_gap_512": _row(_LARGE, 16, 512, _GAP, _TANH),
    "vit_so400m_patch14_siglip_gap_224": _row(_SO400M, 14, 224, _GAP),
    "vit_so400m_patch14_siglip_gap_378": _row(_SO400M, 14, 378, _GAP),
    "vit_so400m_patch14_siglip_gap_384": _row(_SO400M, 14, 384, _GAP, ignore_remainder=True),
    "vit_so400m_patch14_siglip_gap_448": _row(_SO400M, 14, 448, _GAP),
    "vit_so400m_patch14_siglip_gap_896": _row(_SO400M, 14, 896, _GAP),
    "vit_so400m_patch16_siglip_gap_256": _row(_SO400M, 16, 256, _GAP, _TANH),
    "vit_so400m_patch16_siglip_gap_384": _row(_SO400M, 16, 384, _GAP, _TANH),
    "vit_so400m_patch16_siglip_gap_512": _row(_SO400M, 16, 512, _GAP, _TANH),
    "vit_giantopt_patch16_siglip_gap_256": _row(_GIANTOPT, 16, 256, _GAP, _TANH),
    "vit_giantopt_patch16_siglip_gap_384": _row(_GIANTOPT, 16, 384, _GAP, _TANH),
    # DINOv2 (https://arxiv.org/abs/2304.07193), TIPSv2 (https://arxiv.org/abs/2604.12012)
    "vit_small_patch14_dinov2": _row(_SMALL, 14, 518, layer_scale=1e-5),
    "vit_small_patch14_reg4_dinov2": _row(_SMALL, 14, 518, _tokens(4), layer_scale=1e-5),
    "vit_base_patch14_dinov2": _row(_BASE, 14, 518, layer_scale=1e-5),
    "vit_base_patch14_reg1_tipsv2": _row(_BASE, 14, 448, _tokens(1), layer_scale=1.0),
    "vit_base_patch14_reg4_dinov2": _row(_BASE, 14, 518, _tokens(4), layer_scale=1e-5),
    "vit_large_patch14_dinov2": _row(_LARGE, 14, 518, layer_scale=1e-5),
    "vit_large_patch14_reg1_tipsv2": _row(_LARGE, 14, 448, _tokens(1), layer_scale=1.0),
    "vit_large_patch14_reg4_dinov2": _row(_LARGE, 14, 518, _tokens(4), layer_scale=1e-5),
    "vit_so400m_patch14_reg1_tipsv2": _row(_SO400M, 14, 448, _tokens(1), layer_scale=1.0),
    "vit_giant_patch14_dinov2": _row(_DINO_GIANT, 14, 518, layer_scale=1e-5),
    "vit_giant_patch14_reg1_tipsv2": _row(_DINO_GIANT, 14, 448, _tokens(1), layer_scale=1.0),
    "vit_giant_patch14_reg4_dinov2": _row(_DINO_GIANT, 14, 518, _tokens(4), layer_scale=1e-5),
    # registers instead of a class token; Ross Wightman's sizes between Ti and B
    "vit_dwee_patch16_reg1_gap_256": _row(_WEE, 16, 256, _regs(1), _DIFF),
    "vit_wee_patch16_reg1_gap_256": _row(_WEE, 16, 256, _regs(1)),
    "vit_dpwee_patch16_reg1_gap_256": _row(_PWEE, 16, 256, _regs(1), _DIFF_PARALLEL),
    "vit_pwee_patch16_reg1_gap_256": _row(_PWEE, 16, 256, _regs(1), _PARALLEL),
    "vit_dlittle_patch16_reg1_gap_256": _row(_LITTLE, 16, 256, _regs(1), _DIFF),
    "vit_little_patch16_reg1_gap_256": _row(_LITTLE, 16, 256, _regs(1)),
    "vit_little_patch16_reg4_gap_256": _row(_LITTLE, 16, 256, _regs(4)),
    "vit_medium_patch16_reg1_gap_256": _row(_MEDIUM, 16, 256, _regs(1)),
    "vit_medium_patch16_reg4_gap_256": _row(_MEDIUM, 16, 256, _regs(4)),
    "vit_mediumd_patch16_reg4_gap_256": _row(_MEDIUMD, 16, 256, _regs(4)),
    "vit_mediumd_patch16_reg4_gap_384": _row(_MEDIUMD, 16, 384, _regs(4)),
    "vit_betwixt_patch16_reg1_gap_256": _row(_BETWIXT, 16, 256, _regs(1)),
    "vit_betwixt_patch16_reg4_gap_256": _row(_BETWIXT, 16, 256, _regs(4)),
    "vit_betwixt_patch16_reg4_gap_384": _row(_BETWIXT, 16, 384, _regs(4)),
    "vit_base_patch16_reg4_gap_256": _row(_BASE, 16, 256, _tokens(4), class_token=False, global_pool="avg"),
    # shape-optimized, https://arxiv.org/abs/2305.13035; registers have positions
    "vit_so150m2_patch16_reg1_gap_256": _row(_SO150M2, 16, 256, _SO150_REG),
    "vit_so150m2_patch16_reg1_gap_384": _row(_SO150M2, 16, 384, _SO150_REG),
    "vit_so150m2_patch16_reg1_gap_448": _row(_SO150M2, 16, 448, _SO150_REG),
    "vit_so150m_patch16_reg4_gap_256": _row(_SO150M, 16, 256, _GAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_gap_384": _row(_SO150M, 16, 384, _GAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_map_256": _row(_SO150M, 16, 256, _MAP, reg_tokens=4),
    # other kinds of blocks: https://arxiv.org/abs/2302.05442, https://arxiv.org/abs/2203.09795
    "vit_small_patch16_18x2_224": _row(_size(384, 18, 6), 16, 224, _THINGS),
    "vit_small_patch16_36x1_224": _row(_size(384, 36, 6), 16, 224, layer_scale=1e-5),
    "vit_base_patch16_rpn_224": _row(_BASE, 16, 224, _POST),
    "vit_base_patch16_xp_224": _row(_BASE, 16, 224, _XP),
    "vit_base_patch16_18x2_224": _row(_size(768, 18, 12), 16, 224, _THINGS),
    "vit_base_patch16_plus_240": _row(_PLUS, 16, 240, layer_scale=1e-5),
    "vit_base_patch32_plus_256": _row(_PLUS, 32, 256, layer_scale=1e-5),
    "vit_large_patch14_xp_224": _row(_LARGE, 14, 224, _XP),
    "vit_huge_patch14_xp_224": _row(_HUGE, 14, 224, _XP),
    # AIMv2, https://arxiv.org/abs/2411.14402
    "aimv2_large_patch14_224": _row(_AIM_LARGE, 14, 224, _AIM),
    "aimv2_large_patch14_336": _row(_AIM_LARGE, 14, 336, _AIM),
    "aimv2_large_patch14_448": _row(_AIM_LARGE, 14, 448, _AIM),
    "aimv2_huge_patch14_224": _row(_AIM_HUGE, 14, 224, _AIM),
    "aimv2_huge_patch14_336": _row(_AIM_HUGE, 14, 336, _AIM),
    "aimv2_huge_patch14_448": _row(_AIM_HUGE, 14, 448, _AIM),
    "aimv2_1b_patch14_224": _row(_AIM_1B, 14, 224, _AIM),
    "aimv2_1b_patch14_336": _row(_AIM_1B, 14, 336, _AIM),
    "aimv2_1b_patch14_448": _row(_AIM_1B, 14, 448, _AIM),
    "aimv2_3b_patch14_224": _row(_AIM_3B, 14, 224, _AIM),
    "aimv2_3b_patch14_336": _row(_AIM_3B, 14, 336, _AIM),
    "aimv2_3b_patch14_448": _row(_AIM_3B, 14, 448, _AIM),
    # BEiT-3, https://arxiv.org/abs/2208.10442
    "beit3_base_patch16_224": _row(_BASE, 16, 224, _BEIT3),
    "beit3_large_patch16_224": _row(_LARGE, 16, 224, _BEIT3),
    "beit3_giant_patch14_224": _row(_GIANT, 14, 224, _BEIT3),
    "beit3_giant_patch14_336": _row(_GIANT, 14, 336, _BEIT3),
    # FlexiViT, https://arxiv.org/abs/2212.08013
    "flexivit_small": _row(_SMALL, 16, 240, _FLEXI),
    "flexivit_base": _row(_BASE, 16, 240, _FLEXI),
    "flexivit_large": _row(_LARGE, 16, 240, _FLEXI),
    # InternViT, https://arxiv.org/abs/2410.16261
    "vit_intern300m_patch14_448": _row(_LARGE, 14, 448, layer_scale=0.1, final_norm=False, dynamic_image_size=True),
    # DeiT, https://arxiv.org/abs/2012.12877
    "deit_tiny_distilled_patch16_224": _row(_TINY, 16, 224, distilled=True),
    "deit_tiny_patch16_224": _row(_TINY, 16, 224),
    "deit_small_distilled_patch16_224": _row(_SMALL, 16, 224, distilled=True),
    "deit_small_patch16_224": _row(_SMALL, 16, 224),
    "deit_base_distilled_patch16_224": _row(_BASE, 16, 224, distilled=True),
    "deit_base_distilled_patch16_384": _row(_BASE, 16, 384, distilled=True),
    "deit_base_patch16_224": _row(_BASE, 16, 224),
    "deit_base_patch16_384": _row(_BASE, 16, 384),
    # DeiT III, https://arxiv.org/abs/2204.07118
    "deit3_small_patch16_224": _row(_SMALL, 16, 224, _DEIT3),
    "deit3_small_patch16_384": _row(_SMALL, 16, 384, _DEIT3),
    "deit3_medium_patch16_224": _row(_MEDIUM, 16, 224, _DEIT3),
    "deit3_base_patch16_224": _row(_BASE, 16, 224, _DEIT3),
    "deit3_base_patch16_384": _row(_BASE, 16, 384, _DEIT3),
    "deit3_large_patch16_224": _row(_LARGE, 16, 224, _DEIT3),
    "deit3_large_patch16_384": _row(_LARGE, 16, 384, _DEIT3),
    "deit3_huge_patch14_224": _row(_HUGE, 14, 224, _DEIT3),
    # timm's tiny models for tests
    "test_vit": _row(_size(64, 6, 2, 3), 16, 160, dynamic_image_size=True),
    "test_vit2": _row(
        _size(64, 8, 2, 3),
        16,
        160,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        layer_scale=1e-5,
        dynamic_image_size=True,
    ),
    "test_vit3": _row(_size(96, 9, 3, 2), 16, 160, _MAP, reg_tokens=1, pool_include_prefix=True, layer_scale=1e-5),
    "test_vit4": _row(
        _size(96, 9, 3, 3),
        16,
        160,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        layer_scale=1e-5,
        dynamic_image_size=True,
        norm=RMSNorm,
    ),
}

registry.register("vit", VisionTransformer, VARIANTS)

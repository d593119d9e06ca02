"""The variants of EfficientNet and its relatives under timm's names: tables of stages, and a row for each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxvision.models import registry
from jaxvision.models.efficientnet import EfficientNet
from jaxvision.models.efficientnet_plan import Row, Stage

# block, repeats, kernel, stride, features, expand, squeeze_excite
B_STAGES = (
    Row("ds", 1, 3, 1, 16, 1, 0.25),
    Row("ir", 2, 3, 2, 24, 6, 0.25),
    Row("ir", 2, 5, 2, 40, 6, 0.25),
    Row("ir", 3, 3, 2, 80, 6, 0.25),
    Row("ir", 3, 5, 1, 112, 6, 0.25),
    Row("ir", 4, 5, 2, 192, 6, 0.25),
    Row("ir", 1, 3, 1, 320, 6, 0.25),
)
LITE_STAGES = tuple(replace(row, squeeze_excite=0.0) for row in B_STAGES)
EDGE_STAGES = (
    Row("er", 1, 3, 1, 24, 4, shortcut=False, expand_from=24),
    Row("er", 2, 3, 2, 32, 8),
    Row("er", 4, 3, 2, 48, 8),
    Row("ir", 5, 5, 2, 96, 8),
    Row("ir", 4, 5, 1, 144, 8),
    Row("ir", 2, 5, 2, 192, 8),
)
X_STAGES = (
    replace(B_STAGES[0], space_to_depth=True),
    Row("er", 2, 3, 2, 24, 6, 0.25, activation="relu"),
    Row("er", 2, 5, 2, 40, 6, 0.25, activation="relu"),
    *B_STAGES[3:],
)
H_STAGES = (X_STAGES[0], *(replace(row, expand=4) for row in X_STAGES[1:4]), *X_STAGES[4:])

V2_B_STAGES = (
    Row("cn", 1, 3, 1, 16),
    Row("er", 2, 3, 2, 32, 4),
    Row("er", 2, 3, 2, 48, 4),
    Row("ir", 3, 3, 2, 96, 4, 0.25),
    Row("ir", 5, 3, 1, 112, 6, 0.25),
    Row("ir", 8, 3, 2, 192, 6, 0.25),
)
V2_S_STAGES = (
    Row("cn", 2, 3, 1, 24),
    Row("er", 4, 3, 2, 48, 4),
    Row("er", 4, 3, 2, 64, 4),
    Row("ir", 6, 3, 2, 128, 4, 0.25),
    Row("ir", 9, 3, 1, 160, 6, 0.25),
    Row("ir", 15, 3, 2, 256, 6, 0.25),
)
V2_RW_STAGES = (  # timm's own, from before the authors published their code
    Row("er", 2, 3, 1, 24, 1),
    *V2_S_STAGES[1:5],
    Row("ir", 15, 3, 2, 272, 6, 0.25),
)
V2_M_STAGES = (
    Row("cn", 3, 3, 1, 24),
    Row("er", 5, 3, 2, 48, 4),
    Row("er", 5, 3, 2, 80, 4),
    Row("ir", 7, 3, 2, 160, 4, 0.25),
    Row("ir", 14, 3, 1, 176, 6, 0.25),
    Row("ir", 18, 3, 2, 304, 6, 0.25),
    Row("ir", 5, 3, 1, 512, 6, 0.25),
)
V2_L_STAGES = (
    Row("cn", 4, 3, 1, 32),
    Row("er", 7, 3, 2, 64, 4),
    Row("er", 7, 3, 2, 96, 4),
    Row("ir", 10, 3, 2, 192, 4, 0.25),
    Row("ir", 19, 3, 1, 224, 6, 0.25),
    Row("ir", 25, 3, 2, 384, 6, 0.25),
    Row("ir", 7, 3, 1, 640, 6, 0.25),
)
V2_XL_STAGES = (
    Row("cn", 4, 3, 1, 32),
    Row("er", 8, 3, 2, 64, 4),
    Row("er", 8, 3, 2, 96, 4),
    Row("ir", 16, 3, 2, 192, 4, 0.25),
    Row("ir", 24, 3, 1, 256, 6, 0.25),
    Row("ir", 32, 3, 2, 512, 6, 0.25),
    Row("ir", 8, 3, 1, 640, 6, 0.25),
)

MOBILENET_V1_STAGES = (
    Row("dsa", 1, 3, 1, 64, shortcut=False),
    Row("dsa", 2, 3, 2, 128, shortcut=False),
    Row("dsa", 2, 3, 2, 256, shortcut=False),
    Row("dsa", 6, 3, 2, 512, shortcut=False),
    Row("dsa", 2, 3, 2, 1024, shortcut=False),
)
MOBILENET_V2_STAGES = (
    Row("ds", 1, 3, 1, 16),
    Row("ir", 2, 3, 2, 24, 6),
    Row("ir", 3, 3, 2, 32, 6),
    Row("ir", 4, 3, 2, 64, 6),
    Row("ir", 3, 3, 1, 96, 6),
    Row("ir", 3, 3, 2, 160, 6),
    Row("ir", 1, 3, 1, 320, 6),
)
MNASNET_STAGES = (  # B1 of the paper
    Row("ds", 1, 3, 1, 16, shortcut=False),
    Row("ir", 3, 3, 2, 24, 3),
    Row("ir", 3, 5, 2, 40, 3),
    Row("ir", 3, 5, 2, 80, 6),
    Row("ir", 2, 3, 1, 96, 6),
    Row("ir", 4, 5, 2, 192, 6),
    Row("ir", 1, 3, 1, 320, 6, shortcut=False),
)
SEMNASNET_STAGES = (  # A1 of the paper
    Row("ds", 1, 3, 1, 16, shortcut=False),
    Row("ir", 2, 3, 2, 24, 6),
    Row("ir", 3, 5, 2, 40, 3, 0.25),
    Row("ir", 4, 3, 2, 80, 6),
    Row("ir", 2, 3, 1, 112, 6, 0.25),
    Row("ir", 3, 5, 2, 160, 6, 0.25),
    Row("ir", 1, 3, 1, 320, 6),
)
MNASNET_SMALL_STAGES = (
    Row("ds", 1, 3, 1, 8),
    Row("ir", 1, 3, 2, 16, 3),
    Row("ir", 2, 3, 2, 16, 6),
    Row("ir", 4, 5, 2, 32, 6, 0.25),
    Row("ir", 3, 3, 1, 32, 6, 0.25),
    Row("ir", 3, 5, 2, 88, 6, 0.25),
    Row("ir", 1, 3, 1, 144, 6),
)
FBNET_STAGES = (
    Row("ir", 1, 3, 1, 16),
    (Row("ir", 1, 3, 2, 24, 6), Row("ir", 2, 3, 1, 24)),
    (Row("ir", 1, 5, 2, 32, 6), Row("ir", 1, 5, 1, 32, 3), Row("ir", 1, 5, 1, 32, 6), Row("ir", 1, 3, 1, 32, 6)),
    (Row("ir", 1, 5, 2, 64, 6), Row("ir", 1, 5, 1, 64, 3), Row("ir", 2, 5, 1, 64, 6)),
    (Row("ir", 3, 5, 1, 112, 6), Row("ir", 1, 5, 1, 112, 3)),
    Row("ir", 4, 5, 2, 184, 6),
    Row("ir", 1, 3, 1, 352, 6),
)
SPNASNET_STAGES = (
    Row("ds", 1, 3, 1, 16, shortcut=False),
    Row("ir", 3, 3, 2, 24, 3),
    (Row("ir", 1, 5, 2, 40, 6), Row("ir", 3, 3, 1, 40, 3)),
    (Row("ir", 1, 5, 2, 80, 6), Row("ir", 3, 3, 1, 80, 3)),
    (Row("ir", 1, 5, 1, 96, 6), Row("ir", 3, 5, 1, 96, 3)),
    Row("ir", 4, 5, 2, 192, 6),
    Row("ir", 1, 3, 1, 320, 6, shortcut=False),
)


def _mix(repeats: int, kernel: int | tuple[int, ...], *numbers: Any, splits: tuple[int, int] = (1, 1)) -> Row:
    return replace(Row("ir", repeats, kernel, *numbers), activation="silu", splits=splits)


MIXNET_S_STAGES = (
    Row("ds", 1, 3, 1, 16),
    (Row("ir", 1, 3, 2, 24, 6, splits=(2, 2)), Row("ir", 1, 3, 1, 24, 3, splits=(2, 2))),
    (_mix(1, (3, 5, 7), 2, 40, 6, 0.5), _mix(3, (3, 5), 1, 40, 6, 0.5, splits=(2, 2))),
    (_mix(1, (3, 5, 7), 2, 80, 6, 0.25, splits=(1, 2)), _mix(2, (3, 5), 1, 80, 6, 0.25, splits=(1, 2))),
    (_mix(1, (3, 5, 7), 1, 120, 6, 0.5, splits=(2, 2)), _mix(2, (3, 5, 7, 9), 1, 120, 3, 0.5, splits=(2, 2))),
    (_mix(1, (3, 5, 7, 9, 11), 2, 200, 6, 0.5), _mix(2, (3, 5, 7, 9), 1, 200, 6, 0.5, splits=(1, 2))),
)
MIXNET_M_STAGES = (
    Row("ds", 1, 3, 1, 24),
    (Row("ir", 1, (3, 5, 7), 2, 32, 6, splits=(2, 2)), Row("ir", 1, 3, 1, 32, 3, splits=(2, 2))),
    (_mix(1, (3, 5, 7, 9), 2, 40, 6, 0.5), _mix(3, (3, 5), 1, 40, 6, 0.5, splits=(2, 2))),
    (_mix(1, (3, 5, 7), 2, 80, 6, 0.25), _mix(3, (3, 5, 7, 9), 1, 80, 6, 0.25, splits=(2, 2))),
    (_mix(1, 3, 1, 120, 6, 0.5), _mix(3, (3, 5, 7, 9), 1, 120, 3, 0.5, splits=(2, 2))),
    (_mix(1, (3, 5, 7, 9), 2, 200, 6, 0.5), _mix(3, (3, 5, 7, 9), 1, 200, 6, 0.5, splits=(1, 2))),
)
EDGETPU_V1_STAGES = (
    Row("cn", 1, 1, 1, 16, shortcut=False),
    (Row("er", 1, 3, 2, 32, 8), Row("er", 3, 3, 1, 32, 4)),
    (Row("er", 1, 3, 2, 48, 8), Row("er", 3, 3, 1, 48, 4)),
    (Row("ir", 1, 3, 2, 96, 8), Row("ir", 3, 3, 1, 96, 4)),
    (Row("ir", 1, 3, 1, 96, 8, shortcut=False), Row("ir", 3, 3, 1, 96, 4)),
    (Row("ir", 1, 5, 2, 160, 8), Row("ir", 3, 5, 1, 160, 4)),
    Row("ir", 1, 3, 1, 192, 8),
)
TEST_STAGES = (
    Row("cn", 1, 3, 1, 16),
    Row("er", 1, 3, 2, 24, 4),
    Row("er", 1, 3, 2, 32, 4),
    Row("ir", 1, 3, 2, 48, 4, 0.25),
    Row("ir", 1, 3, 2, 64, 4, 0.25),
)


def _cond_conv(experts: int) -> tuple[Row, ...]:
    return (*B_STAGES[:4], *(replace(row, block="cc", experts=experts) for row in B_STAGES[4:]))


def _edgetpu_v2(features: Sequence[int], group_size: int = 64) -> tuple[Stage, ...]:
    a, b, c, d, e, f, g = features
    return (
        Row("cn", 1, 1, 1, a, shortcut=False),
        (Row("er", 1, 3, 2, b, 8), Row("er", 1, 3, 1, b, 4, group_size=group_size)),
        (
            Row("er", 1, 3, 2, c, 8),
            Row("er", 1, 3, 1, c, 4, group_size=group_size),
            Row("er", 1, 3, 1, c, 4),
            Row("er", 1, 3, 1, c, 4, group_size=group_size),
        ),
        (Row("er", 1, 3, 2, d, 8), Row("ir", 3, 3, 1, d, 4)),
        (Row("ir", 1, 3, 1, e, 8), Row("ir", 3, 3, 1, e, 4)),
        (Row("ir", 1, 3, 2, f, 8), Row("ir", 3, 3, 1, f, 4)),
        Row("ir", 1, 3, 1, g, 8),
    )


# Channels of the pruned B1 to B3 (Aflalo et al., "Knapsack Pruning with Inner Distillation",
# https://arxiv.org/abs/2002.08258): for each stage its output, then the inner and squeezed channels of each block.
PRUNED_B1 = (
    (16, (32, 16), (8, 4)),
    (12, (48, 62, 48), (4, 6, 6)),
    (35, (70, 61, 51), (6, 10, 10)),
    (74, (175, 188, 137, 164), (10, 20, 20, 20)),
    (67, (399, 201, 160, 213), (20, 28, 28, 28)),
    (192, (637, 806, 798, 891, 990), (27, 48, 48, 48, 48)),
    (320, (1152, 1912), (48, 80)),
)
PRUNED_B2 = (
    (16, (32, 16), (8, 4)),
    (17, (54, 69, 61), (4, 6, 6)),
    (42, (86, 72, 98), (6, 12, 12)),
    (85, (245, 274, 254, 292), (12, 22, 22, 22)),
    (116, (502, 315, 354, 443), (22, 30, 30, 30)),
    (208, (719, 1148, 1160, 1182, 1228), (30, 52, 52, 52, 52)),
    (352, (1248, 2112), (52, 88)),
)
PRUNED_B3 = (
    (24, (40, 24), (10, 6)),
    (12, (27, 49, 48), (6, 8, 8)),
    (40, (83, 90, 85), (8, 12, 12)),
    (93, (215, 261, 219, 254, 236), (12, 24, 24, 24, 24)),
    (120, (480, 235, 217, 226, 340), (24, 34, 34, 33, 34)),
    (232, (802, 1030, 924, 1016, 1130, 1266), (34, 58, 58, 58, 58, 58)),
    (384, (1392, 2301), (58, 96)),
)

TF: dict[str, Any] = {"padding": "same", "epsilon": 1e-3}  # padding and norm of weights ported from TensorFlow
FIXED: dict[str, Any] = {"scale_stem": False, "scale_head": False, "scale_ends": False}
GROUP_NORM: dict[str, Any] = {"norm": "group", "norm_group_size": 8}

B: dict[str, Any] = {"stages": B_STAGES}
B1, B2, B3, B4, B5, B6, B7, B8, L2 = (
    {"width": width, "depth": depth}
    for width, depth in [
        (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1), (2.2, 3.6), (4.3, 5.3)
    ]
)  # fmt: skip
LITE: dict[str, Any] = {"stages": LITE_STAGES, **FIXED, "activation": "relu6"}
EDGE: dict[str, Any] = {"stages": EDGE_STAGES, "activation": "relu"}
EDGE_EM, EDGE_EL = {"depth": 1.1}, {"width": 1.2, "depth": 1.4}
CC_4, CC_8 = {"stages": _cond_conv(4)}, {"stages": _cond_conv(8)}
V2_B: dict[str, Any] = {"stages": V2_B_STAGES, "round_limit": 0.0}
V2_S: dict[str, Any] = {"stages": V2_S_STAGES, "stem_features": 24}
V2_M: dict[str, Any] = {"stages": V2_M_STAGES, "stem_features": 24}
V2_L: dict[str, Any] = {"stages": V2_L_STAGES}
V2_XL: dict[str, Any] = {"stages": V2_XL_STAGES}
V2_RW: dict[str, Any] = {"stages": V2_RW_STAGES, "stem_features": 24, "head_features": 1792}
V2_T: dict[str, Any] = {**V2_S, "width": 0.8, "depth": 0.9}
MNASNET: dict[str, Any] = {"stages": MNASNET_STAGES, "scale_head": False, "activation": "relu"}
SEMNASNET: dict[str, Any] = {**MNASNET, "stages": SEMNASNET_STAGES}
MOBILENET_V1: dict[str, Any] = {"stages": MOBILENET_V1_STAGES, "head_features": 0, "activation": "relu6"}
MOBILENET_V2: dict[str, Any] = {"stages": MOBILENET_V2_STAGES, "scale_head": False, "activation": "relu6"}
MIXNET: dict[str, Any] = {"head_features": 1536, "scale_head": False, "activation": "relu"}
MIXNET_S: dict[str, Any] = {**MIXNET, "stages": MIXNET_S_STAGES, "stem_features": 16}
MIXNET_M: dict[str, Any] = {**MIXNET, "stages": MIXNET_M_STAGES, "stem_features": 24, "round_depth": True}
TINYNET: dict[str, Any] = {**B, "scale_stem": False, "scale_head": False, "round_depth": True}
EDGETPU: dict[str, Any] = {"activation": "relu"}
TEST: dict[str, Any] = {
    "stages": TEST_STAGES, "stem_features": 24, "head_features": 256, "round_limit": 0.0, "image_size": 160
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {**B},
    "efficientnet_b1": {**B, **B1, "image_size": 240},
    "efficientnet_b2": {**B, **B2, "image_size": 256},
    "efficientnet_b3": {**B, **B3, "image_size": 288},
    "efficientnet_b4": {**B, **B4, "image_size": 320},
    "efficientnet_b5": {**B, **B5, "image_size": 448},
    "efficientnet_b6": {**B, **B6, "image_size": 528},
    "efficientnet_b7": {**B, **B7, "image_size": 600},
    "efficientnet_b8": {**B, **B8, "image_size": 672},
    "efficientnet_l2": {**B, **L2, "image_size": 800},
    "tf_efficientnet_b0": {**B, **TF},
    "tf_efficientnet_b1": {**B, **B1, **TF, "image_size": 240},
    "tf_efficientnet_b2": {**B, **B2, **TF, "image_size": 260},
    "tf_efficientnet_b3": {**B, **B3, **TF, "image_size": 300},
    "tf_efficientnet_b4": {**B, **B4, **TF, "image_size": 380},
    "tf_efficientnet_b5": {**B, **B5, **TF, "image_size": 456},
    "tf_efficientnet_b6": {**B, **B6, **TF, "image_size": 528},
    "tf_efficientnet_b7": {**B, **B7, **TF, "image_size": 600},
    "tf_efficientnet_b8": {**B, **B8, **TF, "image_size": 672},
    "tf_efficientnet_l2": {**B, **L2, **TF, "image_size": 475},
    "efficientnet_b1_pruned": {**B, **B1, **TF, "pruned": PRUNED_B1, "image_size": 240},
    "efficientnet_b2_pruned": {**B, **B2, **TF, "pruned": PRUNED_B2, "image_size": 260},
    "efficientnet_b3_pruned": {**B, **B3, **TF, "pruned": PRUNED_B3, "image_size": 300},
    # Other norms, groups and blurring
    "efficientnet_b0_gn": {**B, **GROUP_NORM},
    "efficientnet_b0_g8_gn": {**B, **GROUP_NORM, "group_size": 8},
    "efficientnet_b0_g16_evos": {**B, "group_size": 16, "divisor": 16},  # has BatchNorm despite its name
    "efficientnet_b3_gn": {**B, **B3, **GROUP_NORM, "norm_group_size": 16, "divisor": 16, "image_size": 288},
    "efficientnet_b3_g8_gn": {
        **B,
        **B3,
        **GROUP_NORM,
        "norm_group_size": 16,
        "group_size": 8,
        "divisor": 16,
        "image_size": 288,
    },
    "efficientnet_blur_b0": {**B, "blur": True},
    # Lite
    "efficientnet_lite0": {**LITE},
    "efficientnet_lite1": {**LITE, **B1, "image_size": 240},
    "efficientnet_lite2": {**LITE, **B2, "image_size": 260},
    "efficientnet_lite3": {**LITE, **B3, "image_size": 300},
    "efficientnet_lite4": {**LITE, **B4, "image_size": 380},
    "tf_efficientnet_lite0": {**LITE, **TF},
    "tf_efficientnet_lite1": {**LITE, **B1, **TF, "image_size": 240},
    "tf_efficientnet_lite2": {**LITE, **B2, **TF, "image_size": 260},
    "tf_efficientnet_lite3": {**LITE, **B3, **TF, "image_size": 300},
    "tf_efficientnet_lite4": {**LITE, **B4, **TF, "image_size": 380},
    # EdgeTPU. The pruned variants have the same shapes; some of their weights are zero.
    "efficientnet_es": {**EDGE},
    "efficientnet_es_pruned": {**EDGE},
    "efficientnet_em": {**EDGE, **EDGE_EM, "image_size": 240},
    "efficientnet_el": {**EDGE, **EDGE_EL, "image_size": 300},
    "efficientnet_el_pruned": {**EDGE, **EDGE_EL, "image_size": 300},
    "tf_efficientnet_es": {**EDGE, **TF},
    "tf_efficientnet_em": {**EDGE, **EDGE_EM, **TF, "image_size": 240},
    "tf_efficientnet_el": {**EDGE, **EDGE_EL, **TF, "image_size": 300},
    # CondConv
    "efficientnet_cc_b0_4e": {**CC_4},
    "efficientnet_cc_b0_8e": {**CC_8},
    "efficientnet_cc_b1_8e": {**CC_8, **B1, "image_size": 240},
    "tf_efficientnet_cc_b0_4e": {**CC_4, **TF},
    "tf_efficientnet_cc_b0_8e": {**CC_8, **TF},
    "tf_efficientnet_cc_b1_8e": {**CC_8, **B1, **TF, "image_size": 240},
    # X and H
    "efficientnet_x_b3": {"stages": X_STAGES, **B3, "image_size": 288},
    "efficientnet_x_b5": {"stages": X_STAGES, **B5, "image_size": 448},
    "efficientnet_h_b5": {"stages": H_STAGES, "width": 1.92, "depth": 2.2, "image_size": 448},
    # V2
    "efficientnetv2_s": {**V2_S, "image_size": 288},
    "efficientnetv2_m": {**V2_M, "image_size": 320},
    "efficientnetv2_l": {**V2_L, "image_size": 384},
    "efficientnetv2_xl": {**V2_XL, "image_size": 384},
    "efficientnetv2_rw_t": {**V2_T},
    "gc_efficientnetv2_rw_t": {**V2_T, "gate": "gc"},
    "efficientnetv2_rw_s": {**V2_RW, "image_size": 288},
    "efficientnetv2_rw_m": {**V2_RW, "width": 1.2, "depth": (1.2, 1.2, 1.2, 1.2, 1.6, 1.6), "image_size": 320},
    "tf_efficientnetv2_s": {**V2_S, **TF, "image_size": 300},
    "tf_efficientnetv2_m": {**V2_M, **TF, "image_size": 384},
    "tf_efficientnetv2_l": {**V2_L, **TF, "image_size": 384},
    "tf_efficientnetv2_xl": {**V2_XL, **TF, "image_size": 384},
    "tf_efficientnetv2_b0": {**V2_B, **TF, "image_size": 192},
    "tf_efficientnetv2_b1": {**V2_B, **B1, **TF, "image_size": 192},
    "tf_efficientnetv2_b2": {**V2_B, **B2, **TF, "image_size": 208},
    "tf_efficientnetv2_b3": {**V2_B, **B3, **TF, "image_size": 240},
    # MobileNet
    "mobilenetv1_100": {**MOBILENET_V1},
    "mobilenetv1_100h": {**MOBILENET_V1, "head_features": 1024},
    "mobilenetv1_125": {**MOBILENET_V1, "width": 1.25},
    "mobilenetv2_035": {**MOBILENET_V2, "width": 0.35},
    "mobilenetv2_050": {**MOBILENET_V2, "width": 0.5},
    "mobilenetv2_075": {**MOBILENET_V2, "width": 0.75},
    "mobilenetv2_100": {**MOBILENET_V2},
    "mobilenetv2_140": {**MOBILENET_V2, "width": 1.4, "scale_head": True},
    "mobilenetv2_110d": {**MOBILENET_V2, **FIXED, "width": 1.1, "depth": 1.2},
    "mobilenetv2_120d": {**MOBILENET_V2, **FIXED, "width": 1.2, "depth": 1.4},
    "mobilenet_edgetpu_100": {**EDGETPU, "stages": EDGETPU_V1_STAGES},
    "mobilenet_edgetpu_v2_xs": {**EDGETPU, "stages": _edgetpu_v2((16, 32, 48, 96, 144, 160, 192))},
    "mobilenet_edgetpu_v2_s": {
        **EDGETPU,
        "stages": _edgetpu_v2((24, 48, 64, 128, 160, 192, 256)),
        "stem_features": 64,
        "stem_kernel": 5,
    },
    "mobilenet_edgetpu_v2_m": {
        **EDGETPU,
        "stages": _edgetpu_v2((32, 64, 80, 160, 192, 240, 320)),
        "stem_features": 64,
        "stem_kernel": 5,
        "head_features": 1344,
    },
    "mobilenet_edgetpu_v2_l": {
        **EDGETPU,
        "stages": _edgetpu_v2((32, 64, 96, 192, 240, 256, 384), 128),
        "stem_features": 64,
        "stem_kernel": 7,
        "head_features": 1408,
    },
    # Networks found by architecture search
    "mnasnet_050": {**MNASNET, "width": 0.5},
    "mnasnet_075": {**MNASNET, "width": 0.75},
    "mnasnet_100": {**MNASNET},
    "mnasnet_140": {**MNASNET, "width": 1.4},
    "semnasnet_050": {**SEMNASNET, "width": 0.5},
    "semnasnet_075": {**SEMNASNET, "width": 0.75},
    "semnasnet_100": {**SEMNASNET},
    "semnasnet_140": {**SEMNASNET, "width": 1.4},
    "mnasnet_small": {**MNASNET, "stages": MNASNET_SMALL_STAGES, "stem_features": 8},
    # timm has this epsilon only with pretrained weights, which were trained with it.
    "fbnetc_100": {
        "stages": FBNET_STAGES,
        "stem_features": 16,
        "head_features": 1984,
        "activation": "relu",
        "epsilon": 1e-3,
    },
    "spnasnet_100": {**MNASNET, "stages": SPNASNET_STAGES},
    "mixnet_s": {**MIXNET_S},
    "mixnet_m": {**MIXNET_M},
    "mixnet_l": {**MIXNET_M, "width": 1.3},
    "mixnet_xl": {**MIXNET_M, "width": 1.6, "depth": 1.2},
    "mixnet_xxl": {**MIXNET_M, "width": 2.4, "depth": 1.3},
    "tf_mixnet_s": {**MIXNET_S, **TF},
    "tf_mixnet_m": {**MIXNET_M, **TF},
    "tf_mixnet_l": {**MIXNET_M, **TF, "width": 1.3},
    "tinynet_a": {**TINYNET, "width": 1.0, "depth": 1.2, "image_size": 192},
    "tinynet_b": {**TINYNET, "width": 0.75, "depth": 1.1, "image_size": 188},
    "tinynet_c": {**TINYNET, "width": 0.54, "depth": 0.85, "image_size": 184},
    "tinynet_d": {**TINYNET, "width": 0.54, "depth": 0.695, "image_size": 152},
    "tinynet_e": {**TINYNET, "width": 0.51, "depth": 0.6, "image_size": 106},
    # timm's tiny models for tests
    "test_efficientnet": {**TEST},
    "test_efficientnet_gn": {**TEST, **GROUP_NORM},
    "test_efficientnet_ln": {**TEST, "norm": "layer"},
    "test_efficientnet_evos": {**TEST, "norm": "evo", "norm_group_size": 8},
}

registry.register("efficientnet", EfficientNet, VARIANTS)

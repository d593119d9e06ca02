"""The variants of ResNet under timm's names."""

from __future__ import annotations

from typing import Any

from jaxvision.models import registry
from jaxvision.models.resnet import ResNet

# Channels of the pruned networks: for each stage its output, then for each block the first and second convolution.
# Aflalo et al., "Knapsack Pruning with Inner Distillation", https://arxiv.org/abs/2002.08258
# fmt: off
KEPT_50: tuple[Any, ...] = (
    (19, (
        (47, 18), (52, 22), (64, 35),
    )),
    (171, (
        (85, 37), (107, 80), (120, 85), (125, 87),
    )),
    (818, (
        (198, 126), (255, 232), (256, 233), (253, 235), (256, 225), (256, 239),
    )),
    (2022, (
        (492, 237), (512, 500), (512, 490),
    )),
)
KEPT_101: tuple[Any, ...] = (
    (26, (
        (45, 25), (53, 20), (60, 27),
    )),
    (142, (
        (81, 24), (93, 49), (102, 54), (122, 78),
    )),
    (278, (
        (101, 25), (239, 160), (234, 156), (250, 176), (253, 191), (251, 175), (230, 128), (244, 154), (244, 159),
        (238, 97), (244, 149), (253, 181), (245, 119), (255, 216), (256, 201), (253, 149), (254, 141), (256, 190),
        (256, 217), (255, 156), (256, 155), (256, 232), (256, 214),
    )),
    (2042, (
        (499, 289), (512, 512), (512, 502),
    )),
)
# fmt: on


# Blocks and depths.
R18: dict[str, Any] = {"block": "basic", "depths": (2, 2, 2, 2)}
R26: dict[str, Any] = {"depths": (2, 2, 2, 2)}
R34: dict[str, Any] = {"block": "basic", "depths": (3, 4, 6, 3)}
R50: dict[str, Any] = {"depths": (3, 4, 6, 3)}
R101: dict[str, Any] = {"depths": (3, 4, 23, 3)}
R152: dict[str, Any] = {"depths": (3, 8, 36, 3)}
R200: dict[str, Any] = {"depths": (3, 24, 36, 3)}
R269: dict[str, Any] = {"depths": (3, 30, 48, 8)}
# Stems with their shortcuts, and the other parts that names stand for.
C: dict[str, Any] = {"stem_width": 32}
D: dict[str, Any] = {"stem_width": 32, "avg_down": True}
S: dict[str, Any] = {"stem_width": 64}
T: dict[str, Any] = {"stem_width": 32, "tiered_stem": True, "avg_down": True}
RS: dict[str, Any] = {**D, "gate": "se4", "stem_pool": "conv"}
X32X4, X32X8, X32X16, X32X32, X64X4 = (
    {"groups": groups, "base_width": width} for groups, width in ((32, 4), (32, 8), (32, 16), (32, 32), (64, 4))
)
SE: dict[str, Any] = {"gate": "se"}
ECA: dict[str, Any] = {"gate": "eca"}
AA: dict[str, Any] = {"antialias": "avg"}
BLUR: dict[str, Any] = {"antialias": "blur"}

VARIANTS: dict[str, dict[str, Any]] = {
    "resnet10t": {"block": "basic", "depths": (1, 1, 1, 1), **T, "image_size": 176},
    "resnet14t": {"depths": (1, 1, 1, 1), **T, "image_size": 176},
    "resnet18": {**R18},
    "resnet18d": {**R18, **D},
    "resnet26": {**R26},
    "resnet26d": {**R26, **D},
    "resnet26t": {**R26, **T, "image_size": 256},
    "resnet34": {**R34},
    "resnet34d": {**R34, **D},
    "resnet50": {**R50},
    "resnet50c": {**R50, **C},
    "resnet50d": {**R50, **D},
    "resnet50s": {**R50, **S},
    "resnet50t": {**R50, **T},
    "resnet101": {**R101},
    "resnet101c": {**R101, **C},
    "resnet101d": {**R101, **D, "image_size": 256},
    "resnet101s": {**R101, **S},
    "resnet152": {**R152},
    "resnet152c": {**R152, **C},
    "resnet152d": {**R152, **D, "image_size": 256},
    "resnet152s": {**R152, **S},
    "resnet200": {**R200},
    "resnet200d": {**R200, **D, "image_size": 256},
    "resnet50_gn": {**R50, "norm": "group"},
    # Wide ResNet, https://arxiv.org/abs/1605.07146
    "wide_resnet50_2": {**R50, "base_width": 128},
    "wide_resnet101_2": {**R101, "base_width": 128},
    # ResNeXt, https://arxiv.org/abs/1611.05431
    "resnext50_32x4d": {**R50, **X32X4},
    "resnext50d_32x4d": {**R50, **X32X4, **D},
    "resnext101_32x4d": {**R101, **X32X4},
    "resnext101_32x8d": {**R101, **X32X8},
    "resnext101_32x16d": {**R101, **X32X16},
    "resnext101_32x32d": {**R101, **X32X32},
    "resnext101_64x4d": {**R101, **X64X4},
    # Squeeze-and-excitation, https://arxiv.org/abs/1709.01507
    "seresnet18": {**R18, **SE},
    "seresnet34": {**R34, **SE},
    "seresnet50": {**R50, **SE},
    "seresnet50t": {**R50, **T, **SE},
    "seresnet101": {**R101, **SE},
    "seresnet152": {**R152, **SE},
    "seresnet152d": {**R152, **D, **SE, "image_size": 256},
    "seresnet200d": {**R200, **D, **SE, "image_size": 256},
    "seresnet269d": {**R269, **D, **SE, "image_size": 256},
    "seresnext26d_32x4d": {**R26, **X32X4, **D, **SE},
    "seresnext26t_32x4d": {**R26, **X32X4, **T, **SE},
    "seresnext50_32x4d": {**R50, **X32X4, **SE},
    "seresnext101_32x4d": {**R101, **X32X4, **SE},
    "seresnext101_32x8d": {**R101, **X32X8, **SE},
    "seresnext101d_32x8d": {**R101, **X32X8, **D, **SE},
    "seresnext101_64x4d": {**R101, **X64X4, **SE},
    "senet154": {**R152, **X64X4, **S, **SE, "narrow_first": 2, "shortcut_kernel": 3},
    # Efficient channel attention, https://arxiv.org/abs/1910.03151
    "ecaresnet26t": {**R26, **T, **ECA, "image_size": 256},
    "ecaresnet50d": {**R50, **D, **ECA},
    "ecaresnet50d_pruned": {**R50, **D, **ECA, "kept": KEPT_50},
    "ecaresnet50t": {**R50, **T, **ECA, "image_size": 256},
    "ecaresnet101d": {**R101, **D, **ECA},
    "ecaresnet101d_pruned": {**R101, **D, **ECA, "kept": KEPT_101},
    "ecaresnet200d": {**R200, **D, **ECA, "image_size": 256},
    "ecaresnet269d": {**R269, **D, **ECA, "image_size": 320},
    "ecaresnetlight": {"depths": (1, 1, 11, 3), "avg_down": True, **ECA},
    "ecaresnext26t_32x4d": {**R26, **X32X4, **T, **ECA},
    "ecaresnext50t_32x4d": {**R50, **X32X4, **T, **ECA},
    # Antialiasing, https://arxiv.org/abs/1904.11486
    "resnetaa34d": {**R34, **D, **AA},
    "resnetaa50": {**R50, **AA},
    "resnetaa50d": {**R50, **D, **AA},
    "resnetaa101d": {**R101, **D, **AA},
    "seresnetaa50d": {**R50, **D, **SE, **AA},
    "seresnextaa101d_32x8d": {**R101, **X32X8, **D, **SE, **AA, "image_size": 288},
    "seresnextaa201d_32x8d": {"depths": (3, 24, 36, 4), **X32X8, **S, "avg_down": True, **SE, **AA, "image_size": 384},
    "resnetblur18": {**R18, **BLUR},
    "resnetblur50": {**R50, **BLUR},
    "resnetblur50d": {**R50, **D, **BLUR},
    "resnetblur101d": {**R101, **D, **BLUR},
    # ResNet-RS, https://arxiv.org/abs/2103.07579
    "resnetrs50": {**R50, **RS, "image_size": 160},
    "resnetrs101": {**R101, **RS, "image_size": 192},
    "resnetrs152": {**R152, **RS, "image_size": 256},
    "resnetrs200": {**R200, **RS, "image_size": 256},
    "resnetrs270": {"depths": (4, 29, 53, 4), **RS, "image_size": 256},
    "resnetrs350": {"depths": (4, 36, 72, 4), **RS, "image_size": 288},
    "resnetrs420": {"depths": (4, 44, 87, 4), **RS, "image_size": 320},
    # timm's tiny model for tests, with both kinds of block
    "test_resnet": {
        "block": ("basic", "basic", "bottleneck", "basic"),
        "depths": (1, 1, 1, 1),
        "widths": (32, 48, 48, 96),
        "stem_width": 16,
        "avg_down": True,
        "image_size": 160,
    },
}

registry.register("resnet", ResNet, VARIANTS)

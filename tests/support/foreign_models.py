"""Small models of other libraries, the independent reference of the tests of their weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from golden import fill
from safetensors import safe_open

from support.foreign import write
from support.reference import import_torchvision

#: Options of our Vision Transformers for the models of this file.
SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}


class Case(NamedTuple):
    """A model of another library.

    Attributes:
      architecture: timm's name for it.
      options: arguments of `jaxvision.create_model`.
      build: returns the model, and the function from images [b, c, h, w] to the logits or features.
      saves: whether the file is the one that the library's own `save_pretrained` writes, instead of its state_dict.
    """

    architecture: str
    options: dict[str, Any]
    build: Callable[[], tuple[Any, Callable[[Any], Any]]]
    saves: bool = False


def _torchvision_vit() -> Any:
    import_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 8, 2, 2, 64, 128, num_classes=5)
    return model, model


def _torchvision_resnet() -> Any:
    import_torchvision()
    from torchvision.models.resnet import Bottleneck, ResNet

    model = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=32, width_per_group=4)
    return model, model


def _torchvision_efficientnet() -> Any:
    import_torchvision()
    from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf

    settings, last = _efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.5)
    model = EfficientNet(settings, dropout=0.0, last_channel=last, num_classes=5)
    return model, model


def _torchvision_efficientnet_v2() -> Any:
    import_torchvision()
    import torch
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    rows = [
        FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        FusedMBConvConfig(4, 3, 2, 8, 16, 1),
        FusedMBConvConfig(4, 3, 2, 16, 16, 1),
        MBConvConfig(4, 3, 2, 16, 32, 1),
        MBConvConfig(6, 3, 1, 32, 40, 1),
        MBConvConfig(6, 3, 2, 40, 64, 2),
    ]
    norm = partial(torch.nn.BatchNorm2d, eps=1e-3)
    model = EfficientNet(rows, dropout=0.0, last_channel=320, num_classes=5, norm_layer=norm)
    return model, model


def transformers() -> Any:
    """Returns the module transformers, which imports torchvision."""
    import_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


_WIDTHS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
_VIT = _WIDTHS | {"intermediate_size": 128, "num_labels": 5, "layer_norm_eps": 1e-6}
_DINOV2 = _WIDTHS | {"mlp_ratio": 2, "num_labels": 5}


def _hugging_face(
    model: str, config: str, output: Callable[[Any], Any] = lambda out: out.logits, **options: Any
) -> Any:
    built = getattr(transformers(), model)(getattr(transformers(), config)(**options))
    return built, lambda x: output(built(x))


def _token(out: Any) -> Any:
    return out.last_hidden_state[:, 0]


def _hugging_face_mae() -> Any:
    import torch

    decoder = {f"decoder_{key}": number for key, number in {**_WIDTHS, "intermediate_size": 32}.items()}
    decoder |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    model, _ = _hugging_face("ViTMAEForPreTraining", "ViTMAEConfig", **_VIT | decoder, mask_ratio=0.0)
    order = torch.arange(16.0)  # keeps the patches in order
    return model, lambda x: _token(model.vit(x, noise=order.repeat(len(x), 1)))


def _hugging_face_dinov2_head() -> Any:
    model, _ = _hugging_face("Dinov2ForImageClassification", "Dinov2Config", **_DINOV2)
    return model, lambda x: _token(model.dinov2(x))


def _hugging_face_clip() -> Any:
    vision = {key: number for key, number in _VIT.items() if key not in ("num_labels", "layer_norm_eps")}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text |= {"vocab_size": 10, "bos_token_id": 1, "eos_token_id": 2}
    model, _ = _hugging_face("CLIPModel", "CLIPConfig", vision_config=vision, text_config=text, projection_dim=8)

    def features(x: Any) -> Any:
        found = model.get_image_features(x)
        return getattr(found, "pooler_output", found)  # version 5 returns an object

    return model, features


def _open_clip(quick_gelu: bool) -> Any:
    import_torchvision()
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=2, width=64, head_width=32, mlp_ratio=2.0, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=5, vocab_size=10, width=16, heads=2, layers=1)
    model = CLIP(8, vision, text, quick_gelu=quick_gelu)
    return model, model.encode_image


_RESNET = {"embedding_size": 64, "depths": [1, 1, 1, 1], "num_labels": 5}
_OURS_RESNET = {"depths": (1, 1, 1, 1), "widths": (8, 16, 32, 64)}
_HEADLESS = partial(_hugging_face, output=_token)

#: Every model whose library installs from the package index.
CASES = {
    "torchvision-vit": Case("vit_base_patch16_224", SMALL, _torchvision_vit),
    "torchvision-resnext": Case("resnext50_32x4d", {"depths": (1, 1, 1, 1)}, _torchvision_resnet),
    "torchvision-efficientnet": Case("efficientnet_b0", {"width": 0.25, "depth": 0.5}, _torchvision_efficientnet),
    "torchvision-efficientnet-v2": Case(
        "efficientnetv2_s", {"width": 0.25, "depth": 0.1, "epsilon": 1e-3}, _torchvision_efficientnet_v2
    ),
    "transformers-vit": Case(
        "vit_base_patch16_224", SMALL, partial(_hugging_face, "ViTForImageClassification", "ViTConfig", **_VIT), True
    ),
    "transformers-vit-memory": Case("vit_base_patch16_224", SMALL, partial(_HEADLESS, "ViTModel", "ViTConfig", **_VIT)),
    "transformers-deit": Case(
        "deit_base_distilled_patch16_224",
        SMALL,
        partial(_hugging_face, "DeiTForImageClassificationWithTeacher", "DeiTConfig", **_VIT),
        True,
    ),
    "transformers-mae": Case("vit_base_patch16_224", SMALL, _hugging_face_mae, True),
    "transformers-dinov2": Case("vit_base_patch14_dinov2", SMALL, _hugging_face_dinov2_head, True),
    "transformers-dinov2-swiglu": Case(
        "vit_giant_patch14_dinov2",
        SMALL | {"mlp_ratio": 2.75},  # 176 inner channels, of which 88 are gates
        partial(_HEADLESS, "Dinov2Model", "Dinov2Config", **_DINOV2, use_swiglu_ffn=True),
        True,
    ),
    "transformers-dinov2-swiglu-memory": Case(
        "vit_giant_patch14_dinov2",
        SMALL | {"mlp_ratio": 2.75},
        partial(_HEADLESS, "Dinov2Model", "Dinov2Config", **_DINOV2, use_swiglu_ffn=True),
    ),
    "transformers-dinov2-registers": Case(
        "vit_base_patch14_reg4_dinov2",
        SMALL,
        partial(_HEADLESS, "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **_DINOV2),
        True,
    ),
    "transformers-resnet50": Case(
        "resnet50",
        _OURS_RESNET,
        partial(
            _hugging_face, "ResNetForImageClassification", "ResNetConfig", hidden_sizes=[32, 64, 128, 256], **_RESNET
        ),
        True,
    ),
    "transformers-resnet18": Case(
        "resnet18",
        {"depths": (1, 1, 1, 1), "widths": (64, 16, 32, 64)},
        partial(
            _hugging_face,
            "ResNetForImageClassification",
            "ResNetConfig",
            hidden_sizes=[64, 16, 32, 64],
            layer_type="basic",
            **_RESNET,
        ),
        True,
    ),
    "transformers-clip": Case("vit_base_patch16_clip_quickgelu_224", SMALL, _hugging_face_clip, True),
    "open-clip": Case("vit_base_patch16_clip_224", SMALL, partial(_open_clip, False)),
    "open-clip-quickgelu": Case("vit_base_patch16_clip_quickgelu_224", SMALL, partial(_open_clip, True)),
}


def reference(case: Case, path: Path) -> np.ndarray:
    """Writes a file of made-up weights, and returns what the library computes with them.

    Args:
      case: the model.
      path: the file to write, ``model.safetensors`` in an empty folder. A ``config.json`` of the library may join it.
    """
    import torch

    model, output = case.build()
    if case.saves:
        model.save_pretrained(path.parent)
        with safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        write(path, {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")})
        model.load_state_dict(type(model).from_pretrained(path.parent).state_dict())
    else:
        state = {name: x for name, x in model.state_dict().items() if x.is_floating_point()}
        write(path, {name: tuple(x.shape) for name, x in state.items()})
        from safetensors.torch import load_file

        model.load_state_dict(load_file(path), strict=False)
    side = case.options.get("image_size", 64)
    images = torch.from_numpy(fill.images((2, side, side, 3)).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        model.eval()
        return output(images).numpy()

"""Writes tests/golden/foreign.json: what other libraries compute with made-up weights under their own names.

    python tests/golden/make_foreign.py SOURCES

It needs the extra ``reference``, and in the folder SOURCES checkouts of the repositories that no package index has:
``big_vision`` and ``vision_transformer`` of google-research, ``dinov2`` of facebookresearch, and ``CLIP`` of openai.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parent.parent)]

import fill  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax.traverse_util import flatten_dict, unflatten_dict  # noqa: E402
from safetensors import safe_open  # noqa: E402
from support.foreign import value  # noqa: E402
from support.foreign_models import CASES, SMALL, Case, reference  # noqa: E402

GOOGLE = SMALL | {"activation": "gelu_tanh"}


def _dinov2(sources: Path, **options: Any) -> Any:
    os.environ["XFORMERS_DISABLED"] = "1"
    sys.path.insert(0, str(sources / "dinov2"))
    from dinov2.layers import MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer

    model = DinoVisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=64,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention),
        init_values=1.0,
        block_chunks=0,
        **options,
    )
    return model, model


def _openai(sources: Path) -> Any:
    spec = importlib.util.spec_from_file_location("openai_clip", sources / "CLIP" / "clip" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.CLIP(8, 32, 2, 64, 8, 5, 10, 16, 2, 1)
    return model, model.encode_image


def torch_cases(sources: Path) -> dict[str, Case]:
    """Returns the models of PyTorch that no package has. Their widths fix the number of heads and the MLP."""
    one_head = SMALL | {"num_heads": 1, "mlp_ratio": 4.0}
    return {
        "openai-clip": Case("vit_base_patch16_clip_quickgelu_224", one_head, partial(_openai, sources)),
        "dinov2": Case("vit_base_patch14_dinov2", SMALL, partial(_dinov2, sources)),
        "dinov2-registers": Case(
            "vit_base_patch14_reg4_dinov2", SMALL, partial(_dinov2, sources, num_register_tokens=4)
        ),
        "dinov2-swiglu": Case(
            "vit_giant_patch14_dinov2", SMALL | {"mlp_ratio": 2.75}, partial(_dinov2, sources, ffn_layer="swiglu")
        ),
    }


def _stub(name: str) -> None:
    """Replaces a module of big_vision that the models import but do not need to compute."""
    parent, _, last = name.rpartition(".")
    module = types.ModuleType(name)
    sys.modules[name] = module
    setattr(importlib.import_module(parent), last, module)


def flax_cases(sources: Path) -> Iterator[tuple[str, str, dict[str, Any], Any, str]]:
    """Yields name, architecture, options, model and the prefix of the names of each model of Flax."""
    sys.path[:0] = [str(sources / "big_vision"), str(sources / "vision_transformer")]
    _stub("big_vision.utils")
    _stub("big_vision.models.common")
    from big_vision.models import bit_paper, vit
    from ml_collections import ConfigDict
    from vit_jax.models_vit import VisionTransformer

    sizes: dict[str, Any] = {"patch_size": (8, 8), "width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 2}
    make = partial(vit.Model, 5, head_zeroinit=False, **sizes)
    yield "big-vision-gap", "vit_base_patch16_gap_224", GOOGLE, make(pool_type="gap"), "params/"
    yield "big-vision-map", "vit_base_patch16_siglip_224", GOOGLE, make(pool_type="map"), "params/img/"
    token = GOOGLE | {"no_embed_class": True}
    yield "big-vision-token-scan", "vit_base_patch16_224", token, make(pool_type="tok", scan=True), "params/"

    def original(patch: int, layers: tuple[int, ...] | None = None) -> Any:
        transformer = {"num_heads": 2, "num_layers": 2, "mlp_dim": 128, "dropout_rate": 0.0}
        return VisionTransformer(
            num_classes=5,
            patches=ConfigDict({"size": (patch, patch)}),
            hidden_size=64,
            transformer=transformer | {"attention_dropout_rate": 0.0},
            resnet=None if layers is None else ConfigDict({"num_layers": layers, "width_factor": 1}),
        )

    yield "google-vit", "vit_base_patch16_224", GOOGLE, original(8), "opt/target/"
    stem = GOOGLE | {"image_size": 32, "patch_size": 2}
    yield "google-vit-stem", "vit_tiny_r_s16_p8_224", stem, original(2, ()), ""
    stages = GOOGLE | {"image_size": 64, "patch_size": 1}
    yield "google-vit-stages", "vit_small_r26_s32_224", stages, original(1, (2, 2, 2, 2)), ""
    bit = {"depths": (1, 1, 1, 1), "stem_pool": "torch"}
    yield "big-vision-bit", "resnetv2_50x1_bit", bit, bit_paper.Model(5, depth=(1, 1, 1, 1), head_zeroinit=False), ""


def flax_row(architecture: str, options: dict[str, Any], model: Any, prefix: str) -> dict[str, Any]:
    """Returns the row of a model of Flax."""
    side = options.get("image_size", 64)
    images = jnp.asarray(fill.images((2, side, side, 3)))
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    shapes = {prefix + "/".join(path): x.shape for path, x in flatten_dict(abstract).items()}
    values = {tuple(name.removeprefix(prefix).split("/")): value(name, shape) for name, shape in shapes.items()}
    with jax.default_matmul_precision("highest"):
        logits = model.apply({"params": unflatten_dict(values)}, images, train=False)
    logits = logits[0] if isinstance(logits, tuple) else logits
    return row(architecture, options, shapes, np.asarray(logits), ".npz")


def torch_row(case: Case) -> dict[str, Any]:
    """Returns the row of a model of PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        logits = reference(case, path)
        with safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return row(case.architecture, case.options, shapes, logits, ".safetensors")


def row(
    architecture: str, options: dict[str, Any], shapes: dict[str, tuple[int, ...]], logits: np.ndarray, suffix: str
) -> dict[str, Any]:
    """Returns a row of the file: what to build, the tensors of the weight file, and the library's first 8 outputs."""
    numbers = [[float(f"{x:.7g}") for x in each[:8]] for each in logits]
    return {"architecture": architecture, "options": options, "suffix": suffix, "logits": numbers, "shapes": shapes}


def main(sources: Path) -> None:
    """Writes the rows of all models."""
    rows = {name: torch_row(case) for name, case in (CASES | torch_cases(sources)).items()}
    for name, *rest in flax_cases(sources):
        rows[name] = flax_row(*rest)
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (HERE / "foreign.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).expanduser().resolve())

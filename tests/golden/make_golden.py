"""Writes tests/golden/golden.json: logits of real timm, for weights and images made by `fill`.

    python tests/golden/make_golden.py [ARCHITECTURE ...]

Without names all rows are made anew, which takes a quarter of an hour; with names only theirs. Needs PyTorch
and timm (the extra ``reference``). Run it again when an architecture is added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import fill  # noqa: E402
from reference import import_timm  # noqa: E402

RESNETS = "resnet18 resnet34 resnet50 resnet101 resnet152 resnet50d wide_resnet50_2 resnext50_32x4d seresnet50"
VITS = """
vit_tiny_patch16_224 vit_tiny_patch16_384 vit_small_patch16_224 vit_small_patch16_384 vit_small_patch32_224
vit_small_patch32_384 vit_base_patch16_224 vit_base_patch16_384 vit_base_patch32_224 vit_base_patch32_384
vit_large_patch16_224 vit_large_patch16_384 vit_large_patch32_224 vit_large_patch32_384
deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384
deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224
deit_base_distilled_patch16_384
"""
EFFICIENTNETS = """
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4
tf_efficientnet_b0 tf_efficientnet_b1 tf_efficientnet_b2 tf_efficientnet_b3 tf_efficientnet_b4
tf_efficientnet_lite0 tf_efficientnet_lite1 tf_efficientnet_lite2 tf_efficientnet_lite3 tf_efficientnet_lite4
"""
# Images are small, to be quick; their odd sides make every padding and pooling rule show. The sizes that the models
# were made for come in once for each family.
SIZES = {
    **{name: [75] for name in ["test_resnet", *RESNETS.split()]},
    **{name: [75] for name in ["test_efficientnet", *EFFICIENTNETS.split()]},
    **{name: [96 if "patch32" in name else 64] for name in ["test_vit", *VITS.split()]},
}
SIZES["resnet50"].append(224)
SIZES["vit_base_patch16_224"].append(224)
SIZES["deit_base_distilled_patch16_384"].append(384)
SIZES["efficientnet_b0"].append(224)
SIZES["tf_efficientnet_b0"].append(224)
BATCH, KEPT = 2, 16
GAINS = [1.0, 1.1, 1.2, 1.3, 1.35, 1.4, 1.45, 1.5]


def logits(model: Any, size: int, gain: float) -> np.ndarray:
    """Returns the logits [b, 1000] of a filled timm model, in float64 so that they are free of rounding."""
    import torch

    state = {
        name: torch.from_numpy(fill.tensor(name, tuple(value.shape), gain=gain))
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    model.load_state_dict(state, strict=True)
    images = torch.from_numpy(fill.images((BATCH, size, size, 3)).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return model(images.double()).numpy()


def golden(timm: Any, architecture: str, size: int) -> dict[str, Any]:
    """Returns the row of one architecture: the first logits of each image, the norm of all, and the gain.

    Nets of ReLU and nets with LayerNorm carry the image to the logits at a gain of 1. EfficientNet gets the first gain
    at which two images are told apart well: from there on an error shows, wherever in the net it is.
    """
    resized = {"img_size": size} if architecture.startswith(("vit", "deit", "test_vit")) else {}
    model = timm.create_model(architecture, num_classes=1000, **resized).eval().double()
    for gain in GAINS:
        got = logits(model, size, gain)
        difference = np.abs(got[0] - got[1]).max() / np.abs(got).max()
        if difference > 0.05 or "efficientnet" not in architecture:
            break
    print(f"{architecture} {size}: gain {gain}, two images differ by {difference:.2g}", flush=True)
    norms = np.linalg.norm(got, axis=1)
    return {"gain": gain, "norm": _rounded(norms), "logits": [_rounded(row[:KEPT]) for row in got]}


def _rounded(numbers: np.ndarray) -> list[float]:
    return [float(f"{x:.8g}") for x in numbers]


def main() -> None:
    """Writes a row for each architecture and image size."""
    timm = import_timm()
    chosen = set(sys.argv[1:]) or set(SIZES)
    assert chosen <= set(SIZES), chosen - set(SIZES)
    old = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))["golden"] if sys.argv[1:] else {}
    rows = {
        case: golden(timm, name, size) if name in chosen else old[case]
        for name, sizes in SIZES.items()
        for size in sizes
        for case in [f"{name} {size}"]
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    text = f'{{"timm": {json.dumps(timm.__version__)}, "golden": {{\n{lines}\n}}}}\n'
    (HERE / "golden.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes tests/golden/golden.json: logits of real timm, for weights and images made by `fill`.

    python tests/golden/make_golden.py [ARCHITECTURE ... | --all]

Without names the rows that are missing are made, on all cores, and with ``--all`` every row anew, which takes half an
hour; stopped, it goes on. Needs PyTorch and timm (the extra ``reference``). Run it when an architecture is added.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parent.parent)]

import fill  # noqa: E402
import jax  # noqa: E402
from reference import import_timm  # noqa: E402

from jaxvision.models import registry  # noqa: E402

# The sizes that models were made for come in for some of each family; see `small_size` for the others.
NATIVE = {
    "resnet50": 224,
    "resnetv2_50": 224,
    "vit_base_patch16_224": 224,
    "deit_base_distilled_patch16_384": 384,
    "efficientnet_b0": 224,
    "tf_efficientnet_b0": 224,
}
BATCH, KEPT = 2, 16
GAINS = [1.0, 1.1, 1.2, 1.3, 1.35, 1.4, 1.45, 1.5]
# timm gives this one its epsilon only together with its weights.
OPTIONS = {"fbnetc_100": {"bn_eps": 1e-3}}
LARGEST = 400e6  # parameters; above it blocks are left away


def small_size(architecture: str) -> int:
    """Returns a side that is quick: odd for a convnet, so that every padding and pooling rule shows; 4 patches."""
    row = registry.variant(architecture)
    if row.family == "vit":
        patch = row.arguments.get("patch_size", 16)
        return 4 * patch if 8 <= patch <= 32 else 64
    return 64 if row.arguments.get("antialias") == "avg" else 75


def shallow(architecture: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options, timm's and ours, by which a model of more than `LARGEST` parameters is made smaller."""
    row = registry.variant(architecture)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(registry.build_abstract(architecture)))
    if parameters <= LARGEST:
        return {}, {}
    # The three largest convnets are as they are: timm takes no other depth for them.
    return ({"depth": 2}, {"depth": 2}) if row.family == "vit" else ({}, {})


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
    with torch.inference_mode():
        return model(images.double()).numpy()


def golden(case: tuple[str, int]) -> dict[str, Any]:
    """Returns the row of one architecture: the first logits of each image, the norm of all, and the gain.

    Nets of ReLU and nets with LayerNorm carry the image to the logits at a gain of 1. EfficientNets get the first gain
    at which two images are told apart well: from there on an error shows, wherever in the net it is.
    """
    import torch

    torch.set_num_threads(1)
    architecture, size = case
    theirs, ours = shallow(architecture)
    theirs = theirs | OPTIONS.get(architecture, {})
    if registry.variant(architecture).family == "vit":
        theirs["img_size"] = size
    with without_initialisation():
        model = import_timm().create_model(architecture, num_classes=1000, **theirs).eval().double()
    for gain in GAINS:
        got = logits(model, size, gain)
        difference = np.abs(got[0] - got[1]).max() / np.abs(got).max()
        if difference > 0.05 or registry.variant(architecture).family != "efficientnet":
            break
    print(f"{architecture} {size}: gain {gain}, two images differ by {difference:.2g}", flush=True)
    row = {"gain": gain, "std": float(f"{got.std():.8g}"), "norm": _rounded(np.linalg.norm(got, axis=1))}
    return row | ({"options": ours} if ours else {}) | {"logits": [_rounded(x[:KEPT]) for x in got]}


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Within it PyTorch draws no random numbers: they would all be overwritten, and take most of the time."""
    import torch

    names = ("normal_", "uniform_", "erfinv_", "bernoulli_")
    real = {name: getattr(torch.Tensor, name) for name in names}
    for name in names:
        setattr(torch.Tensor, name, lambda self, *args, **kwargs: self)
    try:
        yield
    finally:
        for name, method in real.items():
            setattr(torch.Tensor, name, method)


def main() -> None:
    """Writes a row for each architecture and image size."""
    known = registry.architectures()
    names = [name for name in sys.argv[1:] if name != "--all"]
    assert set(names) <= set(known), set(names) - set(known)
    cases = [(name, size) for name in known for size in (small_size(name), NATIVE.get(name)) if size]
    file = HERE / "golden.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["golden"] if "--all" not in sys.argv and file.exists() else {}
    wanted = [case for case in cases if (case[0] in names if names else row_name(*case) not in rows)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        futures = {pool.submit(golden, case): row_name(*case) for case in wanted}
        for future in as_completed(futures):
            rows[futures[future]] = future.result()
            write(file, {key: rows[key] for case in cases if (key := row_name(*case)) in rows})


def row_name(architecture: str, size: int) -> str:
    """Returns the name of a row of the file."""
    return f"{architecture} {size}"


def write(file: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Writes `rows` to `file`, one a line."""
    lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(row)}" for case, row in rows.items())
    version = json.dumps(import_timm().__version__)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(f'{{"timm": {version}, "golden": {{\n{lines}\n}}}}\n', encoding="utf-8")
    temporary.replace(file)


def _rounded(numbers: np.ndarray) -> list[float]:
    return [float(f"{x:.8g}") for x in numbers]


if __name__ == "__main__":
    main()

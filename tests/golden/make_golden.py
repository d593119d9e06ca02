"""Writes tests/golden/golden.json: timm's logits for the weights and images of `fill`.

    python tests/golden/make_golden.py [ARCHITECTURE ... | --all]

Without names, it adds the missing rows, on all cores. With ``--all`` it computes every row again, which takes an hour.
Run it again after an interruption, and when an architecture is added. It needs PyTorch and timm (the extra
``reference``).
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parent.parent)]

import fill  # noqa: E402
import jax  # noqa: E402
from flax import nnx  # noqa: E402
from support.kinds import KINDS  # noqa: E402
from support.reference import import_timm  # noqa: E402

from jaxvision.models import registry  # noqa: E402
from jaxvision.weights import catalog  # noqa: E402

BATCH, KEPT = 2, 16
# timm sets the epsilon of this one only together with its weights.
OPTIONS = {"fbnetc_100": {"bn_eps": 1e-3}}
# With more parameters, a ViT is reduced to two blocks, and a convnet, whose depth timm cannot change, to small images.
LARGEST = 400e6
SMALLER = 256


def sizes(architecture: str) -> list[int]:
    """Returns the sides of the images: the architecture's own and, for a representative of its kind, a small one.

    The small one is odd for a convnet, to show every rule of padding and pooling, and gives a ViT 4 by 4 patches.
    """
    row, native = registry.variant(architecture), catalog.lookup(architecture).image_size
    patch = row.arguments.get("patch_size", 16)
    if parameters(architecture) > LARGEST:
        native = min(native, 16 * patch if has_fixed_size(architecture) else SMALLER)
    if architecture not in KINDS:
        return [native]
    if has_fixed_size(architecture):
        return [native, 4 * patch if 8 <= patch <= 32 else 64]
    return [native, 64 if row.arguments.get("antialias") == "avg" else 75]


def has_fixed_size(architecture: str) -> bool:
    """Returns whether the model accepts only images of one size, as a ViT does."""
    return registry.variant(architecture).build.has_fixed_image_size


@cache
def parameters(architecture: str) -> int:
    """Returns the number of parameters."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(registry.build_abstract(architecture), nnx.Param)))


def golden(case: tuple[str, int]) -> dict[str, Any]:
    """Returns the row of one architecture and image size.

    It has the first logits of each image and the norm of all, computed in float64; the error of PyTorch in float32, in
    standard deviations; and the power of two of each running variance.
    """
    import torch

    torch.set_num_threads(1)
    architecture, size = case
    shallow: dict[str, Any] = {}
    if has_fixed_size(architecture) and parameters(architecture) > LARGEST:
        shallow = {"depth": 2}
    theirs = shallow | OPTIONS.get(architecture, {})
    if has_fixed_size(architecture):
        theirs["img_size"] = size
    with without_initialization():
        model = import_timm().create_model(architecture, num_classes=1000, **theirs).eval().double()
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(torch.from_numpy(fill.tensor(name, tuple(value.shape))))
    powers: dict[str, int] = {}
    hooks = [
        module.register_forward_pre_hook(partial(fit_variance, powers=powers, name=f"{name}.running_var"))
        for name, module in model.named_modules()
        if getattr(module, "running_var", None) is not None
    ]
    images = torch.from_numpy(fill.images((BATCH, size, size, 3)).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        got = model(images.double()).numpy()
        for hook in hooks:
            hook.remove()
        float32 = np.abs(model.float()(images).numpy() - got).max() / got.std()
    difference = np.abs(got[0] - got[1]).max() / got.std()
    print(f"{architecture} {size}: float32 {float32:.1e}, the two images differ by {difference:.2g}", flush=True)
    return {
        **({"options": shallow} if shallow else {}),
        "std": float(f"{got.std():.8g}"),
        "torch_float32": float(f"{float32:.2g}"),
        "norm": _rounded(np.linalg.norm(got, axis=1)),
        "logits": [_rounded(x[:KEPT]) for x in got],
        **({"powers": [powers[name] for name in sorted(powers)]} if powers else {}),
    }


def fit_variance(module: Any, inputs: tuple[Any, ...], *, powers: dict[str, int], name: str) -> None:
    """Multiplies a running variance by the power of two that brings it closest to the variance of the norm's input."""
    mean = module.running_mean.view(1, -1, 1, 1)
    powers[name] = round(math.log2(float((inputs[0] - mean).square().mean())))
    module.running_var.mul_(2.0 ** powers[name])


def shapes(architecture: str) -> str:
    """Returns a hash of the names and shapes of all tensors of a timm model."""
    import torch

    with torch.device("meta"):
        model = import_timm().create_model(architecture, num_classes=1000)
    return fill.digest(
        (name, tuple(value.shape))
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


@contextmanager
def without_initialization() -> Iterator[None]:
    """Keeps PyTorch from drawing initial values, which takes most of the time. All of them are overwritten."""
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
    file = HERE / "golden.json"
    old: dict[str, Any] = (
        {} if "--all" in sys.argv or not file.exists() else json.loads(file.read_text(encoding="utf-8"))
    )
    digests = {name: old.get("shapes", {}).get(name) or shapes(name) for name in known}
    rows = old.get("golden", {})
    cases = [(name, size) for name in known for size in sizes(name)]
    wanted = [case for case in cases if (case[0] in names if names else row_name(*case) not in rows)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        futures = {pool.submit(golden, case): row_name(*case) for case in wanted}
        for done, future in enumerate(as_completed(futures), 1):
            rows[futures[future]] = future.result()
            print(f"{done}/{len(wanted)}", flush=True)
            write(file, digests, {key: rows[key] for case in cases if (key := row_name(*case)) in rows})


def row_name(architecture: str, size: int) -> str:
    """Returns the name of a row of the file."""
    return f"{architecture} {size}"


def write(file: Path, digests: dict[str, str], rows: dict[str, dict[str, Any]]) -> None:
    """Writes the numbers to `file`, one line per row."""
    contents = {"timm": import_timm().__version__, "shapes": digests, "golden": rows}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(
        "{"
        + ",\n".join(
            f"{json.dumps(key)}: "
            + (
                "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"
                if isinstance(value, dict)
                else json.dumps(value)
            )
            for key, value in contents.items()
        )
        + "}\n",
        encoding="utf-8",
    )
    temporary.replace(file)


def _rounded(numbers: np.ndarray) -> list[float]:
    return [float(f"{x:.8g}") for x in numbers]


if __name__ == "__main__":
    main()

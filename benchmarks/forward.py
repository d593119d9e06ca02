"""Measures images per second of a forward pass, for jaxvision and for timm on PyTorch.

    python benchmarks/forward.py [--models resnet50 ...] [--batch 8] [--rounds 10] [--iterations 2]

Both run in one process with the same number of threads: JAX jitted, PyTorch in eager mode with each of its two memory
layouts. They take turns, so that a busy machine slows all of them. The table shows the best round of each. Requires the
extra ``reference`` (PyTorch and timm).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.reference import import_timm

from jaxvision.models import registry

# model -> (image size, required ratio to the faster PyTorch layout)
MODELS = {"efficientnet_b3": (288, 0.8), "resnet50": (224, 0.9), "vit_base_patch16_224": (224, 0.9)}


def jax_forward(name: str, images: np.ndarray) -> Callable[[], None]:
    """Returns a function that runs the jaxvision model once on the images."""
    # Constant weights: drawing 87 million random ones would take longer than the benchmark.
    model = jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), registry.build_abstract(name))
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    x = jnp.asarray(images)
    return lambda: jax.block_until_ready(forward(state, x))


def torch_forward(
    name: str,
    images: np.ndarray,
    *,
    channels_last: bool,
    device: str = "cpu",
    dtype: Any = None,
    compiled: bool = False,
    **options: Any,
) -> Callable[[], None]:
    """Returns a function that starts the timm model once on the images, on a GPU without waiting for the result.

    Args:
      name: the model.
      images: [b, h, w, c].
      channels_last: the memory layout.
      device: where it runs.
      dtype: dtype of the parameters and the images; None for float32.
      compiled: compile the model by ``torch.compile``.
      **options: arguments of ``timm.create_model``.
    """
    import torch

    timm = import_timm()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with torch.device("cpu"):
        model = timm.create_model(name, **options).eval()
    model = model.to(device, dtype, memory_format=layout)
    forward = torch.compile(model) if compiled else model
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device, dtype, memory_format=layout)

    def run() -> None:
        with torch.inference_mode():
            forward(x)

    return run


def rates(runs: dict[str, Callable[[], None]], batch: int, *, rounds: int, iterations: int) -> dict[str, float]:
    """Returns the images per second of each function in its best round. The functions take turns."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()  # compiles and allocates
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(iterations):
                run()
            best[name] = min(best[name], (time.perf_counter() - start) / iterations)
    return {name: batch / seconds for name, seconds in best.items()}


def processor() -> str:
    """Returns the name of the processor and the number of threads available."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {len(os.sched_getaffinity(0))} threads"


def main() -> int:
    """Prints the table. Returns 1 if a model misses its required ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=2)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"{processor()}; jax {jax.__version__} on {jax.default_backend()}, torch {torch.__version__} on cpu, float32")
    what = f"images/s, batch {args.batch}"
    print(f"{what:28} {'jax':>8} {'torch':>8} {'channels_last':>14} {'ratio':>6} {'required':>8}")
    missed = 0
    for name in args.models:
        size, bar = MODELS.get(name, (224, 0.0))
        images = np.random.default_rng(0).standard_normal((args.batch, size, size, 3), np.float32)
        runs = {
            "jax": jax_forward(name, images),
            "torch": torch_forward(name, images, channels_last=False),
            "channels_last": torch_forward(name, images, channels_last=True),
        }
        got = rates(runs, args.batch, rounds=args.rounds, iterations=args.iterations)
        ratio = got["jax"] / max(got["torch"], got["channels_last"])
        missed += ratio < bar
        numbers = f"{got['jax']:8.1f} {got['torch']:8.1f} {got['channels_last']:14.1f} {ratio:6.2f} {bar or '':>8}"
        print(f"{name + ' @ ' + str(size):28} {numbers}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

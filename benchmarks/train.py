"""Measures images per second of a train step, for jaxvision and for timm on PyTorch.

    python benchmarks/train.py [--models resnet50 ...] [--rounds 4] [--iterations 2]

Both run in one process with the same number of threads: jaxvision's own train step, with its metrics, and PyTorch in
eager mode with each of its two memory layouts. Both compute the cross entropy of images that are on the device, its
gradient in float32, and AdamW's update. They take turns, so that a busy machine slows all of them. The table shows the
best round of each, and the seconds from a built model to the end of its first step. Requires the extra ``reference``
(PyTorch and timm).
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import forward  # adds the folder of the tests' support to the path
import jax
import numpy as np
import optax
from flax import nnx
from support.reference import import_timm

from jaxvision.models import registry
from jaxvision.models.registry import variant
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import state_shardings
from jaxvision.train.loss import make_loss
from jaxvision.train.state import abstract_state, create_state, initialize
from jaxvision.train.step import make_train_step

CLASSES = 1000
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Case:
    """A model, its image size, its batch size, and the required ratio to the faster PyTorch layout."""

    model: str
    size: int
    batch: int
    required: float = 0.0


CASES = [
    Case("test_vit", 16, 64, 0.95),
    Case("test_vit", 160, 64, 0.95),
    Case("test_resnet", 32, 64, 0.85),
    Case("vit_tiny_patch16_224", 224, 8, 0.95),
    Case("vit_small_patch16_224", 224, 8, 0.95),
    Case("resnet18", 224, 8, 0.85),
    Case("resnet50", 224, 8, 0.85),
    Case("efficientnet_b0", 224, 8, 0.80),
    Case("tf_efficientnet_lite0", 224, 8, 0.80),
]


def options(case: Case, name: str) -> dict[str, int]:
    """Returns the argument `name`, in which a ViT takes its image size. A convnet takes images of any size."""
    return {name: case.size} if variant(case.model).family == "vit" else {}


def examples(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images [b, h, w, c] and labels [b]."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((case.batch, case.size, case.size, 3), np.float32)
    return images, rng.integers(CLASSES, size=case.batch).astype(np.int32)


def jax_program(case: Case, *, dtype: Any = None) -> tuple[Any, nnx.State, Callable[[], nnx.State]]:
    """Returns jaxvision's train step, the shapes of its state, and a function that returns the first state."""
    mesh = make_mesh(devices=jax.devices()[:1])
    create = functools.partial(create_state, tx=optax.adamw(LEARNING_RATE))

    def build() -> nnx.Module:
        extra = options(case, "image_size")
        return registry.build(case.model, num_classes=CLASSES, dtype=dtype, rngs=nnx.Rngs(0), **extra)

    graph, abstract = abstract_state(create, build)
    shardings = state_shardings(abstract, mesh)
    step = make_train_step(
        graph,
        mesh=mesh,
        shardings=shardings,
        loss=make_loss(),
        learning_rate=LEARNING_RATE,
        prepare=lambda batch, _: (batch["image"], batch["label"]),
    )
    abstract = jax.tree.map(lambda x, sharding: x.update(sharding=sharding), abstract, shardings)
    return step, abstract, lambda: initialize(create, build, shardings)


def jax_step(case: Case, images: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """Returns a function that runs one step of jaxvision's training."""
    step, _, first_state = jax_program(case)
    state = first_state()
    batch = jax_batch(images, labels)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def jax_batch(images: np.ndarray, labels: np.ndarray) -> dict[str, jax.Array]:
    """Returns the batch that jaxvision's step takes, on the first device."""
    return jax.device_put({"image": images, "label": labels, "mask": np.ones(len(labels), bool)}, jax.devices()[0])


def torch_step(
    case: Case,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    channels_last: bool,
    device: str = "cpu",
    dtype: Any = None,
    compiled: bool = False,
) -> Callable[[], None]:
    """Returns a function that starts one step of a timm model in PyTorch, on a GPU without waiting for its end.

    Args:
      case: the model.
      images: [b, h, w, c].
      labels: [b].
      channels_last: the memory layout.
      device: where it runs.
      dtype: dtype of the computation under autocast; the parameters stay float32. None for float32.
      compiled: compile the model by ``torch.compile``.
    """
    import torch

    timm = import_timm()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = timm.create_model(case.model, num_classes=CLASSES, **options(case, "img_size"))
    model = model.train().to(device, memory_format=layout)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True if device != "cpu" else None)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device, memory_format=layout)
    y = torch.from_numpy(labels.astype(np.int64)).to(device)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = torch.nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()

    return run


def measure(
    runs: dict[str, Callable[[], None]], *, rounds: int, iterations: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the seconds of each function in its first call, and per call in its best round. They take turns."""
    first = {name: seconds(run) for name, run in runs.items()}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # the other's data are in the caches
            best[name] = min(best[name], seconds(run, iterations))
    return first, best


def seconds(run: Callable[[], None], iterations: int = 1) -> float:
    """Returns the mean duration of a call."""
    start = time.perf_counter()
    for _ in range(iterations):
        run()
    return (time.perf_counter() - start) / iterations


def main() -> int:
    """Prints the table. Returns 1 if a model misses its required ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", help="names in the table (default: all)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2, help="steps in a round")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(
        f"{forward.processor()}; jax {jax.__version__} on {jax.default_backend()}, torch {torch.__version__} on cpu, "
        "float32"
    )
    print(
        f"{'images/s':34} {'jax':>8} {'torch':>8} {'channels_last':>14} {'ratio':>6} {'required':>8}"
        "   first step, seconds: jax, torch"
    )
    missed = 0
    for case in CASES:
        if args.models and case.model not in args.models:
            continue
        images, labels = examples(case)
        runs = {
            "jax": jax_step(case, images, labels),
            "torch": torch_step(case, images, labels, channels_last=False),
            "channels_last": torch_step(case, images, labels, channels_last=True),
        }
        first, best = measure(runs, rounds=args.rounds, iterations=args.iterations)
        rate = {name: case.batch / time for name, time in best.items()}
        ratio = rate["jax"] / max(rate["torch"], rate["channels_last"])
        missed += ratio < case.required
        what = f"{case.model} @ {case.size}, batch {case.batch}"
        numbers = f"{rate['jax']:8.1f} {rate['torch']:8.1f} {rate['channels_last']:14.1f} {ratio:6.2f}"
        print(f"{what:34} {numbers} {case.required:8.2f}   {first['jax']:.1f}, {first['torch']:.1f}", flush=True)
        del runs
        jax.clear_caches()
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

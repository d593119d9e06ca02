"""What is measured on this machine: the speed of its CPU, and the latency of a model."""

from __future__ import annotations

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.create import create_model

_LEAST_RUNS, _MOST_RUNS, _SECONDS = 20, 200, 1.0


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass for one image, in milliseconds.

    Attributes:
      median: the median of the repetitions.
      quartiles: the first and the third quartile.
      runs: number of repetitions.
    """

    median: float
    quartiles: tuple[float, float]
    runs: int

    def __str__(self) -> str:
        """Returns the median and the quartiles."""
        low, high = self.quartiles
        return f"{self.median:.1f} ({low:.1f}-{high:.1f})"


def measure_latency(name: str, image_size: int, num_classes: int) -> Latency:
    """Returns the latency of a model on the device that JAX uses here: one image, float32, compiled.

    The weights are random, because the time does not depend on them. Compilation and the first calls do not count.

    Args:
      name: name of the model.
      image_size: side of the image in pixels.
      num_classes: number of classes of the head.
    """
    model = create_model(name, num_classes=num_classes, image_size=image_size)
    forward = jax.jit(lambda model, images: model(images))
    images = jnp.zeros((1, image_size, image_size, 3))
    for _ in range(3):
        jax.block_until_ready(forward(model, images))
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or (sum(seconds) < _SECONDS and len(seconds) < _MOST_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(forward(model, images))
        seconds.append(time.perf_counter() - start)
    low, middle, high = (1000 * float(x) for x in np.percentile(seconds, (25, 50, 75)))
    return Latency(middle, (low, high), len(seconds))


def cpu_operations_per_second(device: jax.Device) -> float:
    """Returns the rate of a CPU's float32 matrix products, the best of a few: an upper bound for any model."""
    n = 1024
    matrix = jax.device_put(jnp.ones((n, n)), device)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(matrix, matrix))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best

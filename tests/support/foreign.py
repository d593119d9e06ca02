"""Weight files of other libraries for tests: made-up values under the libraries' own names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from golden import fill
from safetensors.numpy import save_file


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the made-up values of a library's tensor, which depend only on its name and shape."""
    numbers, last = fill.uniform(name, shape), name.replace("/", ".").rsplit(".", 1)[-1]
    if last == "running_var":
        return np.float32(1) + np.float32(0.5) * numbers
    if len(shape) == 1:
        is_scale = last in ("weight", "scale", "gamma", "lambda1")
        return np.float32(0.2) * numbers + np.float32(is_scale)
    if last in ("weight", "kernel", "in_proj_weight"):
        fan_in = math.prod(shape[:-1] if last == "kernel" else shape[1:])
        return np.float32(math.sqrt(3 / fan_in)) * numbers
    return np.float32(0.2) * numbers + np.float32(last == "scale")


def write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Writes a safetensors file, or a NumPy archive, of made-up values and returns its path."""
    tensors = {name: np.asarray(value(name, tuple(shape))) for name, shape in shapes.items()}
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        save_file(tensors, path, metadata={"format": "pt"})  # which transformers requires
    return path

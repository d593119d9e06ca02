"""Weights and images from a seed and a name, identical in every process, on every machine and with every NumPy.

They make it possible to store golden logits without the weights. Only the raw bits of a counter-based generator are
used, because NumPy guarantees that they never change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np


def uniform(name: str, shape: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
    """Returns float32 numbers of `shape`, uniform in [-1, 1), which depend only on name, shape and seed."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    n = math.prod(shape)
    bits = np.random.Philox(key=key).random_raw((n + 1) // 2).astype("<u8").view("<u4")[:n]
    # 24 bits fill the mantissa of a float32, so each step below is exact.
    return (((bits >> np.uint32(8)).astype(np.float32) - np.float32(2**23)) * np.float32(2**-23)).reshape(shape)


def tensor(name: str, shape: tuple[int, ...], *, power: int = 0, seed: int = 0) -> np.ndarray:
    """Returns float32 values for timm's tensor `name`.

    Args:
      name: the key in timm's state_dict.
      shape: shape of the tensor in PyTorch's layout.
      power: exponent of a running variance, which is 2 ** power on average. It must be close to the variance of the
        norm's input, as after training. Otherwise a deep network loses the image or amplifies rounding errors.
      seed: seed of the numbers. Default: 0.
    """
    u = uniform(name, shape, seed=seed)
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return (np.float32(1) + np.float32(0.5) * u) * np.float32(2.0**power)
    if last in ("running_mean", "bias"):
        return np.float32(0.2) * u
    if last == "weight" and len(shape) == 1:  # the scale of a norm
        return np.float32(1) + np.float32(0.3) * u
    if last == "weight" and len(shape) == 2 and "conv" in name:  # CondConv's flattened experts, of unknown fan-in
        return np.float32(0.1 * math.sqrt(3)) * u
    if last == "weight":
        return np.float32(math.sqrt(3 / math.prod(shape[1:]))) * u
    # Tokens and positions are as small as in training, so that the epsilon of the first norm matters.
    return np.float32(0.02) * u if "token" in name or "embed" in name else u


def images(shape: tuple[int, int, int, int], *, seed: int = 0) -> np.ndarray:
    """Returns float32 images [b, h, w, c] of unit variance: 4 by 4 fields of color with noise.

    Noise alone would not do: a deep network averages it, and the mean is the same in every image.
    """
    b, h, w, c = shape
    fields = uniform("fields", (b, 4, 4, c), seed=seed)[:, np.arange(h) * 4 // h][:, :, np.arange(w) * 4 // w]
    return np.float32(math.sqrt(1.5)) * (fields + uniform("images", shape, seed=seed))


def digest(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """Returns a hash of the names and shapes of tensors, independent of their order."""
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

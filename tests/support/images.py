"""Images with known structure, as arrays and as files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(height=120, width=160, channels=3, seed=0, *, smooth=False):
    """A picture with gradients and, unless smooth, a chequered texture: uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(channels):
        fy, fx, phase = rng.uniform(0.02, 0.15, 3) * (0.2 if smooth else 1, 0.2 if smooth else 1, 40)
        planes.append(127 + 90 * np.sin(y * fy + phase) * np.cos(x * fx) + 30 * (not smooth) * ((x // 11 + y // 7) % 2))
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def encode(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, kind, **options)
    return buffer.getvalue()

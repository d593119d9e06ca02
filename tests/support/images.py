"""Images with known structure, as arrays and as files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(height=120, width=160, channels=3, seed=0, *, smooth=False):
    """Returns an image with gradients and, unless smooth, a checkered texture: uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(channels):
        fy, fx, phase = rng.uniform(0.02, 0.15, 3) * (0.2 if smooth else 1, 0.2 if smooth else 1, 40)
        planes.append(127 + 90 * np.sin(y * fy + phase) * np.cos(x * fx) + 30 * (not smooth) * ((x // 11 + y // 7) % 2))
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def random_image(seed, *, height=90, width=120):
    """Returns smooth random colors, uint8 [height, width, 3]. Those of other seeds are independent."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, kind="PNG", **options):
    """Returns the bytes of an image file."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    """Returns metadata with the EXIF orientation 1 to 8, for `encode`."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def image_batch(images, *, labels=None, index=None, mask=None):
    """Returns a batch of images [b, h, w, c] with labels, indices and mask, on the device."""
    import jax.numpy as jnp

    b = len(images)
    return {
        "image": jnp.asarray(images),
        "label": jnp.asarray(np.arange(b) % 10 if labels is None else labels, jnp.int32),
        "index": jnp.asarray(np.arange(b) * 7 + 3 if index is None else index, jnp.int32),
        "mask": jnp.asarray(np.ones(b, bool) if mask is None else mask),
    }


def class_folders(root, classes, *, each=4, seed=0):
    """Writes `each` different PNGs of two sizes for each class into ``root/CLASS``, and returns `root`."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            image = scene(40 + 8 * (i % 2), 48, seed=seed + 100 * number + i)
            image[..., number % 3] //= 4  # the classes differ in color
            (root / name / f"{i}.png").write_bytes(encode(image))
    return root

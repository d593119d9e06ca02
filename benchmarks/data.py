"""Measures training crops per second on one core, for jaxvision and torchvision.

    python benchmarks/data.py ../shared/data/photos

Both turn the bytes of a JPEG into a cropped, resized uint8 array of 224 x 224, in one thread of one process, with the
same files in the same order. torchvision runs ``Image.open(...).convert("RGB")``, ``RandomResizedCrop(224)`` and
``RandomHorizontalFlip`` on Pillow. jaxvision runs `augment.host.train_crop`. That has no flip, because flips, color,
erasing and mixing run on the device inside jit; a second row adds a flip on the host for comparison. The last rows
time the decoders alone.

Each round runs every function over all files. The table shows the best round of each, in CPU time, which other
processes on the machine disturb least.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def contenders(size: int) -> dict[str, Callable[[bytes], np.ndarray]]:
    """Returns the functions to time, name -> (bytes of a file -> uint8 [h, w, 3])."""
    import simplejpeg

    from jaxvision.augment import host

    rng = np.random.default_rng(0)

    def flipped(data: bytes) -> np.ndarray:
        pixels = host.train_crop(data, size, rng)
        return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < 0.5 else pixels

    found: dict[str, Callable[[bytes], np.ndarray]] = {
        "jaxvision train_crop": lambda data: host.train_crop(data, size, rng),
        "jaxvision train_crop + flip": flipped,
        "decoding only: simplejpeg": lambda data: simplejpeg.decode_jpeg(data),
        "decoding only: Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }
    try:
        import torch
        from support.reference import import_torchvision

        transforms = import_torchvision().transforms
    except ImportError:
        print("torchvision is not installed; measuring jaxvision only")
        return found
    torch.set_num_threads(1)
    transform = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()])
    theirs = {
        "torchvision RandomResizedCrop + flip": lambda data: np.asarray(
            transform(Image.open(io.BytesIO(data)).convert("RGB"))
        )
    }
    return theirs | found


def main() -> None:
    """Prints a table of images per second."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT.parent / "shared" / "data" / "photos")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    paths = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        parser.error(f"{options.folder}: got no JPEG files, expected some. Pass another folder.")
    files = [p.read_bytes() for p in paths]
    best: dict[str, float] = {}
    functions = contenders(options.size)
    for _ in range(options.rounds):
        for name, function in functions.items():
            start = time.process_time()
            for data in files:
                function(data)
            best[name] = min(best.get(name, float("inf")), time.process_time() - start)
    print(f"{len(files)} files, {sum(map(len, files)) / len(files) / 1e3:.0f} kB on average, one core")
    base = best.get("torchvision RandomResizedCrop + flip")
    for name, seconds in best.items():
        times = f"{base / seconds:6.2f} x torchvision" if base else ""
        print(f"{name:38s} {len(files) / seconds:8.0f} images/s {times}")


if __name__ == "__main__":
    main()

"""Measures how start and memory depend on the number of images in a folder.

    python benchmarks/many_images.py FOLDER --images 1000 10000000

Creates folders of small JPEG files in FOLDER, 100 classes each, if they do not exist. Most are hard links, so that ten
million take only 500 MB, for their names, and minutes to create. For each folder it measures, in new processes,

- cold: from opening the source to the first training batch of two workers, walking through the folder;
- warm: the same with the manifest that the cold start has written;
- main: memory of the main process, and worker: memory of a worker after 50 batches of 64 images. Both are the process's
  own memory: pages of the manifest in the page cache, which all processes share, are not part of it. The last column
  adds them, as far as the worker has read them.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_LINKS = 50_000  # hard links to one file; ext4 allows 65,000


def create(root: Path, count: int) -> None:
    """Creates a folder of `count` images in 100 classes."""
    from PIL import Image

    classes = 100
    for label in range(classes):
        folder = root / f"class{label:04}"
        folder.mkdir(parents=True, exist_ok=True)
        share = range(label * count // classes, (label + 1) * count // classes)
        for i, number in enumerate(share):
            file = f"{folder}/image_{number:09}.jpg"
            if i % _LINKS == 0:
                data = io.BytesIO()
                Image.fromarray(np.full((48 + label % 2, 48, 3), label % 256, np.uint8)).save(data, "JPEG")
                Path(file).write_bytes(data.getvalue())
                first = file
            else:
                os.link(first, file)
    time.sleep(3)  # the list of a folder that has just changed would not be saved


def memory(pid: int) -> tuple[float, float]:
    """Returns a process's own memory and its memory with shared pages, in MiB."""
    rows = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    sizes = {key: int(value.split()[0]) / 1024 for key, value in rows.items()}
    return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Rss"]


def measure(root: Path) -> dict[str, float]:
    """Returns the measurements of one start, in this process."""
    from jaxvision.data import open_dataset, open_source
    from jaxvision.run.start import data_fingerprint

    started = time.perf_counter()
    train = open_dataset(open_source("folder", data_dir=str(root)).train)
    data_fingerprint(train)
    opened = time.perf_counter() - started
    options = {"batch_size": 64, "image_size": 32, "seed": 0, "start_step": 0, "stop_step": 10**6, "workers": 2}
    batches = train.train_batches(**options)
    next(batches)
    first = time.perf_counter() - started
    for _ in range(50):
        next(batches)
    workers = [memory(process.pid) for process in multiprocessing.active_children() if process.pid]
    main = memory(os.getpid())
    batches.close()
    own, with_shared = max(workers)
    return {"open": opened, "first batch": first, "main": main[0], "worker": own, "worker with shared": with_shared}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print("     images start  s to open  s to batch      MiB: main        worker  with shared")
    for count in options.images:
        root = options.folder / str(count)
        if not root.exists():
            create(root, count)
        with tempfile.TemporaryDirectory() as cache:
            for start in ("cold", "warm"):
                found = subprocess.run(
                    [sys.executable, __file__, str(options.folder), "--measure", str(root)],
                    env=os.environ | {"XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu"},
                    stdout=subprocess.PIPE,
                    check=True,
                )
                opened, batch, *sizes = json.loads(found.stdout.splitlines()[-1]).values()
                print(f"{count:11,} {start:5} {opened:10.1f} {batch:11.1f}", "".join(f"{x:14.0f}" for x in sizes))


if __name__ == "__main__":
    main()

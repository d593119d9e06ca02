"""Seconds and memory from a local weight file to a model that is ready, beside the least that could be done with it.

    python benchmarks/load.py [--model vit_large_patch16_224] [--rounds 5]

What is compared: ``create_model(name, checkpoint_path=file)``, a model that can predict, and ``load_file`` of
safetensors with ``jax.device_put`` of what it gives, which is a dictionary in PyTorch's layout. Both until the last
array is ready. The file has the model's tensors with random values and lies in a temporary folder; it was just written,
so the system holds it in memory, and what is timed is not the disk.

A process loads a model once, into memory that the system has to give it first. So each measurement has a process of its
own; the clock starts when JAX has started. The two take turns, and the best round of each counts. Memory is how far the
peak of the process's resident memory, mapped pages of the file included, rises meanwhile (Linux).

The bars: 1.5 times the time, 1.3 times the size of the file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from forward import processor
from safetensors.numpy import load_file, save_file

import jaxvision
from jaxvision.models import registry
from jaxvision.weights import timm

TIME_BAR, MEMORY_BAR = 1.5, 1.3


def write(name: str, path: Path) -> None:
    """Writes a file of random values with the tensors of a model."""
    rng = np.random.default_rng(0)
    tensors = {}
    for leaf_name, leaf in timm.weights(registry.build_abstract(name)).items():
        shape = timm.timm_shape(leaf_name, leaf.shape)
        tensors[timm.timm_name(leaf_name)] = rng.standard_normal(shape, np.float32) ** 2
    save_file(tensors, path)


def ours(name: str, path: str) -> object:
    """Returns the arrays of a model that is ready."""
    return nnx.state(jaxvision.create_model(name, checkpoint_path=path))


def plain(name: str, path: str) -> object:
    """Returns the tensors of the file."""
    return jax.device_put(load_file(path))


CONTENDERS = {"create_model": ours, "load_file + device_put": plain}


def peak() -> int:
    """Returns the most memory that this process had, in bytes. (What `resource` gives begins with the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(contender: str, name: str, path: str) -> None:
    """Prints seconds and bytes of one load, in this process."""
    jax.block_until_ready(jnp.ones(8) + 1)
    before, start = peak(), time.perf_counter()
    arrays = jax.block_until_ready(CONTENDERS[contender](name, path))
    print(time.perf_counter() - start, peak() - before, len(jax.tree.leaves(arrays)))


def main() -> int:
    """Prints the table; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("CONTENDER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], options.model, options.measure[1])
        return 0

    seconds = dict.fromkeys(CONTENDERS, float("inf"))
    memory = dict.fromkeys(CONTENDERS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        write(options.model, path)
        size = path.stat().st_size
        print(f"{processor()}; jax {jax.__version__} on {jax.default_backend()}; {options.model}, {size / 1e9:.2f} GB")
        for _ in range(options.rounds):
            for contender in CONTENDERS:
                command = [sys.executable, __file__, "--model", options.model, "--measure", contender, str(path)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                seconds[contender] = min(seconds[contender], float(out[0]))
                memory[contender] = max(memory[contender], float(out[1]) / size)
    print(f"{'':24} {'seconds':>8} {'peak memory / file':>19}")
    for contender in CONTENDERS:
        print(f"{contender:24} {seconds[contender]:8.2f} {memory[contender]:19.2f}")
    first, second = CONTENDERS
    ratio = seconds[first] / seconds[second]
    print(
        f"time {ratio:.2f} of the other's (bar {TIME_BAR}), memory {memory[first]:.2f} of the file (bar {MEMORY_BAR})"
    )
    return int(ratio > TIME_BAR or memory[first] > MEMORY_BAR)


if __name__ == "__main__":
    sys.exit(main())

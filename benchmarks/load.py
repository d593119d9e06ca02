"""Measures the time and memory to load a model from a local weight file, against only reading the file.

    python benchmarks/load.py [--model vit_large_patch16_224] [--rounds 5]

Compares ``create_model(name, checkpoint_path=file)``, which returns a model ready to predict, with safetensors'
``load_file`` and ``jax.device_put``, which return a dictionary in PyTorch's layout. Both are timed until the last array
is ready. The file holds random values and has just been written to a temporary folder, so it is in the system's cache
and the disk is not timed.

Each measurement has its own process, because a process usually loads a model once, into memory that it first has to
get from the system. The clock starts after JAX has started. The two take turns; the table shows the best round of each.
Memory is the rise of the peak resident memory, including mapped pages of the file (Linux).

Limits: 1.5 times the time of only reading, and 1.3 times the size of the file.
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

TIME_LIMIT, MEMORY_LIMIT = 1.5, 1.3


def write(name: str, path: Path) -> None:
    """Writes a weight file with the tensors of a model and random values."""
    rng = np.random.default_rng(0)
    tensors = {}
    for leaf_name, leaf in timm.weights(registry.build_abstract(name)).items():
        shape = timm.timm_shape(leaf_name, leaf.shape)
        tensors[timm.timm_name(leaf_name)] = rng.standard_normal(shape, np.float32) ** 2
    save_file(tensors, path)


def ours(name: str, path: str) -> object:
    """Returns the arrays of a model ready to predict."""
    return nnx.state(jaxvision.create_model(name, checkpoint_path=path))


def plain(name: str, path: str) -> object:
    """Returns the tensors of the file."""
    return jax.device_put(load_file(path))


CONTENDERS = {"create_model": ours, "load_file + device_put": plain}


def peak() -> int:
    """Returns the peak memory of this process in bytes. The peak in `resource` would include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(contender: str, name: str, path: str) -> None:
    """Prints the seconds and bytes of one load in this process."""
    jax.block_until_ready(jnp.ones(8) + 1)
    before, start = peak(), time.perf_counter()
    arrays = jax.block_until_ready(CONTENDERS[contender](name, path))
    print(time.perf_counter() - start, peak() - before, len(jax.tree.leaves(arrays)))


def main() -> int:
    """Prints the table. Returns 1 if a limit is exceeded."""
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
        f"{ratio:.2f} times the time of only reading (limit {TIME_LIMIT}), "
        f"{memory[first]:.2f} times the size of the file (limit {MEMORY_LIMIT})"
    )
    return int(ratio > TIME_LIMIT or memory[first] > MEMORY_LIMIT)


if __name__ == "__main__":
    sys.exit(main())

"""Seconds until something can be done: importing jaxvision, and each architecture without weights.

    python benchmarks/start.py

The import is timed in a process of its own, after JAX's and Flax's own. Processor time, so that a busy machine counts
less. The bars: 1.5 s for the import, 1 s for an architecture, and no array on any device.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import jax
from forward import processor

from jaxvision.models import registry

IMPORT_BAR, ABSTRACT_BAR = 1.5, 1.0
IMPORT = """
import time
import flax.nnx, jax, jax.numpy
begin = time.process_time()
import jaxvision
print(time.process_time() - begin)
"""


def main() -> int:
    """Prints what was measured; returns 1 if a bar is missed."""
    run = [sys.executable, "-c", IMPORT]
    imports = [float(subprocess.run(run, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    seconds = {}
    for architecture in registry.architectures():
        begin = time.process_time()
        registry.build_abstract(architecture)
        seconds[architecture] = time.process_time() - begin
    slowest = sorted(seconds, key=seconds.__getitem__, reverse=True)
    arrays = len(jax.live_arrays())
    print(f"{processor()}; jax {jax.__version__}")
    print(f"import jaxvision, beyond JAX and Flax: {min(imports):.2f} s (bar {IMPORT_BAR} s)")
    print(
        f"{len(seconds)} architectures without weights: {median(seconds.values()):.2f} s in the middle, "
        f"{arrays} arrays on devices"
    )
    print(
        "the slowest: "
        + ", ".join(f"{name} {seconds[name]:.2f} s" for name in slowest[:5])
        + f" (bar {ABSTRACT_BAR} s)"
    )
    return int(min(imports) > IMPORT_BAR or seconds[slowest[0]] > ABSTRACT_BAR or arrays > 0)


if __name__ == "__main__":
    sys.exit(main())

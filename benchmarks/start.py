"""Measures the time to import jaxvision, and to build each architecture without weights.

    python benchmarks/start.py

The import is timed in its own process, after importing JAX and Flax. Times are processor time, which a busy machine
disturbs least. Limits: 1.5 s for the import, 1 s for an architecture, and no array on any device.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import jax
from forward import processor

from jaxvision.models import registry

IMPORT_LIMIT, ABSTRACT_LIMIT = 1.5, 1.0
IMPORT = """
import time
import flax.nnx, jax, jax.numpy
begin = time.process_time()
import jaxvision
print(time.process_time() - begin)
"""


def main() -> int:
    """Prints the measurements. Returns 1 if a limit is exceeded."""
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
    print(f"import jaxvision, beyond JAX and Flax: {min(imports):.2f} s (limit {IMPORT_LIMIT} s)")
    print(
        f"{len(seconds)} architectures without weights: {median(seconds.values()):.2f} s (median), "
        f"{arrays} arrays on devices"
    )
    print(
        "slowest: "
        + ", ".join(f"{name} {seconds[name]:.2f} s" for name in slowest[:5])
        + f" (limit {ABSTRACT_LIMIT} s)"
    )
    return int(min(imports) > IMPORT_LIMIT or seconds[slowest[0]] > ABSTRACT_LIMIT or arrays > 0)


if __name__ == "__main__":
    sys.exit(main())

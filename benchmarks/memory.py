"""Compares the memory that `jaxvision plan` predicts for a train step with the memory that the step takes.

    python benchmarks/memory.py                          # a config of each family, small batches on a CPU
    python benchmarks/memory.py --batches 32,64,128      # on a GPU

Each row is measured in its own process. On a GPU the peak is the allocator's. On a CPU it is the process's peak (VmHWM
on Linux, reset once the state exists) minus the memory that the process held before. The prediction is for the same
device: the program's temporaries, the state, the current batch and the two that wait.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

CONFIGS = ("resnet50", "vit_base", "efficientnet_b3")
STEPS = 3


def main() -> int:
    """Prints the predicted and measured bytes and the prediction's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--configs", default=",".join(CONFIGS), help=f"names in configs/ (default: {','.join(CONFIGS)})"
    )
    parser.add_argument("--batches", default="4,8", help="images per step (default: 4,8)")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row[0], int(options.row[1]))))
        return 0
    for config in options.configs.split(","):
        for batch in options.batches.split(","):
            # Without preallocation the allocator's peak is the step's.
            environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            command = [sys.executable, __file__, "--row", config, batch]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                print(f"{config}, {batch} images: exited with status {done.returncode}")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            error = row["predicted"] / row["measured"] - 1
            print(
                f"{config:16} {batch:>4} images on {row['device']}: predicted {row['predicted'] / 2**30:6.3f} GiB, "
                f"measured {row['measured'] / 2**30:6.3f} GiB, {error:+.1%}",
                flush=True,
            )
    return 0


def measure(name: str, batch_size: int) -> dict[str, float | str]:
    """Returns the predicted and the measured bytes of a config's step, and the device."""
    import jax
    import numpy as np

    from jaxvision import run
    from jaxvision.data.pipeline import FromWorkers
    from jaxvision.data.prefetch import AHEAD
    from jaxvision.parallel.mesh import make_mesh, shard_batch
    from jaxvision.run.config import load
    from jaxvision.run.program import train_program
    from jaxvision.train.state import initialize

    config = run.complete(load(f"configs/{name}.py"))
    config.data.batch_size = batch_size
    config.model.pretrained = False
    config.mesh = {"data": 1}
    plan = run.plan(config, device="1000GB", search=False, compare=False).plans[0]

    mesh = make_mesh({"data": 1}, devices=jax.devices()[:1])
    program = train_program(config, mesh, num_classes=1000, pipeline=FromWorkers(), steps_per_epoch=1000.0)
    step = program.step.lower(program.abstract, program.batch).compile()
    gc.collect()
    before = reset_peak()
    state = initialize(program.create, lambda: program.build(weights=False), program.shardings)
    host = {key: np.zeros(x.shape, x.dtype) for key, x in program.batch.items()}
    host["mask"][:] = True
    waiting = [shard_batch(host, mesh) for _ in range(AHEAD)]
    jax.block_until_ready(state)
    if jax.default_backend() == "cpu":  # making the state took memory that is free again
        reset_peak()
    for _ in range(STEPS):
        waiting.append(shard_batch(host, mesh))
        state, _ = step(state, waiting.pop(0))
        jax.block_until_ready(state)
    stats = jax.devices()[0].memory_stats()
    measured = stats["peak_bytes_in_use"] if stats else peak() - before
    return {"predicted": plan.total, "measured": measured, "device": jax.devices()[0].device_kind}


def reset_peak() -> int:
    """Resets the process's peak to its current memory, and returns it in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Returns the peak memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.exit(main())

"""One of several processes that train as one machine; started by test_parallel.py with JAX_COORDINATOR_ADDRESS set."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from jaxvision.checkpoint import Checkpoints
from jaxvision.parallel import distributed
from jaxvision.parallel.mesh import process_share, shard_batch
from support import tiny


def main(workdir: str) -> None:
    assert distributed.initialize()  # before anything that looks at the devices
    losses = []
    for first in (0, 2):  # two steps, a checkpoint, a restart, two more
        run = tiny.Run(tiny.build(dropout=0.2), optax.sgd(0.1, momentum=0.9), create={"ema_decay": 0.9}, devices=8)
        with Checkpoints(workdir) as checkpoints:
            restored = checkpoints.restore(run.abstract, run.shardings)
            assert (restored.step if restored else 0) == first
            if restored is not None:
                run.state = restored.state
            assert process_share(run.mesh) == (jax.process_index(), jax.process_count())
            for i in range(first, first + 2):
                half = np.split(np.arange(16), jax.process_count())[jax.process_index()]
                batch = {key: x[half] for key, x in tiny.batch(16, seed=i).items()}
                run.state, metrics = run.step(run.state, shard_batch(batch, run.mesh))
                losses.append(float(metrics["loss"]))
            checkpoints.save(first + 2, run.state, position={})
    # One byte of the newest is flipped: the process that reads that file finds it, and both go back to the one before.
    if jax.process_index() == 0:
        newest = Path(workdir) / "checkpoints" / "4" / "state"
        file = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    multihost_utils.sync_global_devices("flipped")
    said: list[str] = []
    with Checkpoints(workdir, log=said.append) as checkpoints:
        restored = checkpoints.restore(run.abstract, run.shardings)
        assert restored is not None
        assert (restored.step, checkpoints.steps()) == (2, [2])
    assert len(said) == 1
    print(said[0].removeprefix("skipped a damaged checkpoint, step 4: ").split()[0])
    print(*losses)


if __name__ == "__main__":
    main(sys.argv[1])

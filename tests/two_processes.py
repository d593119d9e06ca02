"""One of several processes that train as one machine; started by test_parallel.py with JAX_COORDINATOR_ADDRESS set."""

from __future__ import annotations

import sys

import jax
import numpy as np
import optax
import tiny

from jaxvision.checkpoint import Checkpoints
from jaxvision.parallel import distributed
from jaxvision.parallel.mesh import shard_batch


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
            for i in range(first, first + 2):
                half = np.split(np.arange(16), jax.process_count())[jax.process_index()]
                batch = {key: x[half] for key, x in tiny.batch(16, seed=i).items()}
                run.state, metrics = run.step(run.state, shard_batch(batch, run.mesh))
                losses.append(float(metrics["loss"]))
            checkpoints.save(first + 2, run.state, position={})
    print(*losses)


if __name__ == "__main__":
    main(sys.argv[1])

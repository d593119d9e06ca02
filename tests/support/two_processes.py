"""One of several processes that train as one machine, started with JAX_COORDINATOR_ADDRESS set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from jaxvision.checkpoint import Checkpoints
from jaxvision.parallel import distributed
from jaxvision.parallel.cores import cores_of_this_process, usable_cores
from jaxvision.parallel.mesh import process_share, shard_batch
from support import tiny


def main(workdir: str) -> None:
    assert distributed.initialize()  # before anything that queries JAX's devices, as importing `damage` does
    from support import damage

    assert cores_of_this_process() == usable_cores() / jax.process_count()  # nothing binds a process to cores
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
    sealed = json.loads((Path(workdir) / "checkpoints" / "4" / "checksums.json").read_text())
    assert {name.split("/")[1] for name in sealed} >= {"ocdbt.process_0", "ocdbt.process_1"}
    multihost_utils.sync_global_devices("looked")
    assert len(list((Path(workdir) / "checkpoints" / "4").glob("checksums.json*"))) == 1
    # Damage the newest checkpoint: the process that verifies that file notices, and both fall back to the one before.
    if jax.process_index() == 0:
        damage.flip(damage.largest_file(Path(workdir) / "checkpoints" / "4" / "state"))
    multihost_utils.sync_global_devices("flipped")
    logged: list[str] = []
    with Checkpoints(workdir, log=logged.append) as checkpoints:
        restored = checkpoints.restore(run.abstract, run.shardings)
        assert restored is not None
        assert (restored.step, checkpoints.steps()) == (2, [2])
    assert len(logged) == 1
    print(logged[0].removeprefix("skipped a damaged checkpoint, step 4: ").split()[0])
    print(*losses)


if __name__ == "__main__":
    main(sys.argv[1])

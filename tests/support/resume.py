"""A run in its own process: ``python resume.py WORKDIR STEPS [KILL_AT]`` trains to STEPS and saves every second step.

With KILL_AT it kills itself with SIGKILL while the checkpoint of that step is written. It prints the step that it
started at and a digest of its final state.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxvision.checkpoint import Checkpoints
from support import tiny


def build() -> nnx.Module:
    model = tiny.build(dropout=0.3)()
    # Takes so long to write that the signal comes first.
    model.ballast = nnx.Variable(jax.random.bits(jax.random.key(0), (2**22,)).astype(jnp.float32))
    return model


def main(workdir: str, steps: int, kill_at: int = -1) -> None:
    run = tiny.Run(build, optax.adam(0.01), create={"ema_decay": 0.9})
    with Checkpoints(workdir, log=lambda message: print("logged:", message)) as checkpoints:
        restored = checkpoints.restore(run.abstract, run.shardings)
        if restored is not None:
            run.state = restored.state
        start = 0 if restored is None else restored.step
        print("start:", start)
        for step in range(start, steps):
            run.train(1, start=step)
            if (step + 1) % 2 == 0:
                checkpoints.save(step + 1, run.state, position={"step": step + 1})
            if step + 1 == kill_at:
                sys.stdout.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    digest = hashlib.sha256(b"".join(x.tobytes() for x in run.arrays().values())).hexdigest()
    print("digest:", digest)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

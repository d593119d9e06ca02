"""A run on eight CPU devices with fsdp=8 that prints the most memory that its start and its end take, as JSON.

``device`` is the largest number of bytes of JAX arrays on any one device, sampled by a thread. ``process`` is the
growth of the process's peak memory (VmHWM), which also includes the host's copies and the temporaries of programs; all
eight devices share it. Both include the state.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxvision.checkpoint import Checkpoints
from jaxvision.data import source
from jaxvision.parallel.rules import state_bytes
from jaxvision.run import result, train
from jaxvision.run.config import complete, load
from jaxvision.run.loop import TrainingLoop

MIB = 2**20
RUN = (
    "model.embed_dim=768",
    "model.depth=2",
    "model.num_heads=4",
    "data.batch_size=16",
    "train.steps=2",
    "train.evaluate_every=0.001",
    "train.ema_decay=0.9",
    "mesh.data=1",
    "mesh.fsdp=8",
    "optimizer.name=adamw",
    "optimizer.learning_rate=0.001",
)


class Peak(threading.Thread):
    """Measures from its creation to `end`.

    Args:
      held: bytes of the state that the process already holds, over all devices.
    """

    def __init__(self, held: int = 0):
        super().__init__(daemon=True)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._base = _status("VmRSS") - held
        self._device, self._ended = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.is_set():
            buffers = {}  # a view of an array shares its buffer
            for x in jax.live_arrays():
                with contextlib.suppress(RuntimeError):  # deleted in the meantime
                    for shard in x.addressable_shards:
                        buffers[shard.device, shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
            held = Counter[Any]()
            for (device, _), size in buffers.items():
                held[device] += size
            self._device = max(self._device, *held.values(), 0)
            time.sleep(0.001)

    def end(self) -> dict[str, float]:
        self._ended.set()
        self.join()
        return {"device": self._device / MIB, "process": (_status("VmHWM") - self._base) / MIB}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _before(owner: Any, name: str, first: Callable[..., object]) -> None:
    """Replaces `owner.name` by a function that calls `first` with the same arguments before it."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def function(*args: Any, **options: Any) -> Any:
        first(*args, **options)
        return real(*args, **options)

    setattr(owner, name, function)


def main(workdir: str, *overrides: str) -> None:
    config = complete(load("configs/quickstart.py:vit"), dict(override.split("=") for override in [*RUN, *overrides]))
    measured: dict[str, Any] = {}
    peaks: dict[str, Peak] = {}

    def started(loop: TrainingLoop) -> None:
        jax.block_until_ready(loop.state)
        measured["start"] = peaks["start"].end()
        abstract, shardings = loop.run.program.abstract, loop.run.program.shardings
        measured["state"] = sum(state_bytes(abstract, shardings).values()) / MIB
        measured["whole state"] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract)) / MIB
        measured["largest array"] = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract)) / MIB

    def ending(run: Any, loop: TrainingLoop) -> None:
        loop.checkpoints.wait()
        loop.checkpoints.best_step = lambda: 1  # not the last
        peaks["end"] = Peak(int(measured["whole state"] * MIB))

    def starting(*args: Any, **options: Any) -> None:
        if "start" not in peaks:  # `choose` restores, too
            peaks["start"] = Peak()

    _before(Checkpoints, "restore", starting)
    _before(TrainingLoop, "train", started)
    _before(result, "choose", ending)
    open_source = source.open_source
    source.open_source = lambda **keys: (splits := open_source(**keys))._replace(validation=splits.test)
    train(config, workdir)
    measured["end"] = peaks["end"].end()
    print(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])

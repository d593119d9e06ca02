"""The worker pool: one for training and evaluation, shared arrays, and an end in every case."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jaxvision.data.pool import WorkerPool
from jaxvision.errors import UserError

IMAGE = (64, 50, 3)


class UnpicklableError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


@dataclass(frozen=True)
class Count:
    """A task: image i of batch n is filled with the byte (10 n + i) % 256. Names its process, and can fail."""

    table: np.ndarray | None = None
    fails_at: int = -1
    hangs_at: int = -1
    seconds: float = 0.0

    def __call__(self, number):
        time.sleep(600 if number == self.hangs_at else self.seconds)
        if number == self.fails_at:
            raise UnpicklableError("ant", "bee")
        values = 10 * number + np.arange(10)
        images = np.empty((10, *IMAGE), np.uint8)
        images[:] = (values % 256)[:, None, None, None]
        if self.table is not None:
            self.table[0] += 1  # of this worker's own copy
        private = int(Path("/proc/self/smaps_rollup").read_text().split("Private_Dirty:")[1].split()[0]) // 1024
        return {"image": images, "index": values, "pid": np.array(os.getpid()), "private": np.array(private)}


def check(batch, number):
    expected = 10 * number + np.arange(10)
    colors = (expected % 256)[:, None, None, None]
    np.testing.assert_array_equal(batch["index"], expected)
    np.testing.assert_array_equal(batch["image"], np.broadcast_to(colors, (10, *IMAGE)))


def wait_for_no_children():
    deadline = time.monotonic() + 20
    while multiprocessing.active_children():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def open_files():
    """Returns how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("count", [0, 2])
def test_one_pool_serves_training_and_evaluations(count):
    """The training stream stays open during evaluations, which the same processes read."""
    pids = set()
    with WorkerPool(count) as pool:
        train = pool.run_ahead(Count(), 0, 20)
        for number in range(6):
            check(batch := next(train), number)
            pids.add(int(batch["pid"]))
        for _ in range(2):
            evaluation = pool.run_ahead(Count(), 3, 12)
            for number, batch in enumerate(evaluation, 3):
                check(batch, number)
                pids.add(int(batch["pid"]))
        for number in range(6, 20):
            check(next(train), number)
        assert next(train, None) is None
        assert len(pids) <= max(count, 1)  # a quick worker may read all
        assert (os.getpid() in pids) == (count == 0)
    wait_for_no_children()


def test_the_caller_may_keep_batches_or_drop_a_stream_early():
    """Kept batches stay as they are and can be written to. A closed stream frees its memory."""
    with WorkerPool(1) as pool:
        next(pool.run_ahead(Count(), 0, 1))  # starts the worker
        gc.collect()
        before = open_files()
        for number, batch in enumerate(kept := list(pool.run_ahead(Count(), 0, 25))):
            check(batch, number)
            batch["image"][:] = 0
        del kept, batch
        for _ in range(3):
            stream = pool.run_ahead(Count(), 0, 25)
            first = next(stream)
            stream.close()  # while other batches are read
            check(first, 0)
        del first
        gc.collect()
        assert len(multiprocessing.active_children()) == 1
        assert open_files() <= before


def test_an_error_of_a_task_comes_in_its_turn_with_its_traceback():
    with WorkerPool(2) as pool:
        stream = pool.run_ahead(Count(fails_at=3), 0, 9)
        for number in range(3):
            check(next(stream), number)
        with pytest.raises(RuntimeError, match="UnpicklableError: ant and bee") as caught:
            next(stream)
        assert "in __call__\n" in str(caught.value.__cause__)
        check(next(pool.run_ahead(Count(), 0, 9)), 0)  # the pool still works


@pytest.mark.parametrize("count", [1, 3])
def test_a_killed_worker_is_one_line(count):
    """The others end too, the pool can be used again, and no file is left."""
    with WorkerPool(1) as pool:
        next(pool.run_ahead(Count(), 0, 1))  # starts what Python keeps open until it exits
    gc.collect()
    before = open_files()
    with WorkerPool(count) as pool:
        stream = pool.run_ahead(Count(seconds=0.02), 0, 10**6)
        check(next(stream), 0)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"^data\.workers: got a worker process that was killed or failed, .*\.$"):
            deque(stream, maxlen=0)
        assert not multiprocessing.active_children()
        check(next(pool.run_ahead(Count(), 7, 8)), 7)
    gc.collect()
    assert open_files() <= before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"\(not enough memory\)\. Set data\.workers or data\.batch_size lower\. Run the same command"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), r"Cannot allocate memory\)\. Set data\.workers or"),
        (OSError(errno.EMFILE, "Too many open files"), r"Too many open files\)\. .* or raise the limit .* ulimit -n"),
    ],
)
def test_shortages_of_the_machine_are_one_line(error, message, monkeypatch):
    """A batch that cannot be read or be passed on, because of memory or open files."""

    def fail(*_):
        raise error

    with WorkerPool(0) as pool, pytest.raises(UserError, match=message):
        next(pool.run_ahead(fail, 0, 2))
    with WorkerPool(1) as pool:
        batches = pool.run_ahead(Count(), 0, 9)
        next(batches)
        monkeypatch.setattr("jaxvision.data.pool.SharedFile", fail)
        with pytest.raises(UserError, match=message):
            list(batches)


def test_close_does_not_wait_for_a_read_that_hangs():
    with WorkerPool(1) as pool:
        stream = pool.run_ahead(Count(hangs_at=1), 0, 5)
        check(next(stream), 0)
        started = time.monotonic()
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


def test_workers_leave_interrupts_and_sigterm_to_the_main_process():
    """A cluster sends SIGTERM to every process of a job, and the main process still evaluates and saves."""
    with WorkerPool(2) as pool:
        stream = pool.run_ahead(Count(), 0, 200)
        first = next(stream)
        for process in multiprocessing.active_children():
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(process.pid, number)
        check(first, 0)
        for number, batch in enumerate(stream, 1):
            check(batch, number)
    wait_for_no_children()


def test_workers_share_the_large_arrays_of_a_task():
    """100 MB of a task are not in the private memory of the workers, which may still write to their copy."""
    table = np.ones(100 * 2**20 // 8)
    with WorkerPool(2) as pool:
        for number, batch in enumerate(pool.run_ahead(Count(table=table), 0, 20)):
            check(batch, number)
            large = batch["private"].max()
        for batch in pool.run_ahead(Count(table=np.ones(2)), 0, 20):
            small = batch["private"].max()
    assert large - small < 20, (large, small)
    assert table[0] == 1
    assert len(pickle.dumps(table)) > 100 * 2**20

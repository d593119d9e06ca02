"""Worker processes that read batches ahead of the step, one pool for training and evaluation.

Each worker has one pipe to this process. A batch is split into pieces of a few rows, and the least busy worker reads
the next piece. The first batch is therefore ready soon, and the memory does not grow with the number of workers. Images
arrive in anonymous shared memory: it has no name that could outlive the processes, however they end. A worker ends when
its pipe closes, which the operating system does even after a ``kill -9`` of this process.

Workers import this module and unpickle tasks, so neither it nor the modules it imports may import JAX. They are spawned
instead of forked, because JAX's threads would not survive a fork. A script that trains with workers must therefore
guard its main part with ``if __name__ == "__main__":``, as always with Python's multiprocessing.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import traceback
import weakref
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import cloudpickle
import numpy as np

from jaxvision.errors import UserError
from jaxvision.parallel.cores import default_workers, usable_cores

Batch = dict[str, np.ndarray]

_ROWS = (8, 32)  # the smallest and the largest piece of a batch
_BACKLOG = 32  # pieces that wait in the pipe of one worker; far from filling it, so that no send ever blocks
_LENT = 4  # batches in shared memory that the caller may hold; it gets copies of further ones
_SHARED = 4096  # bytes from which on an array of a task is shared by the workers instead of copied to each


class Task(Protocol):
    """Batches by number. Workers receive a pickled copy whose large arrays are in shared memory."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the images of a batch: (b, h, w, c)."""
        ...

    def read(self, number: int, rows: slice, images: np.ndarray) -> Batch:
        """Writes the images of some rows of a batch into `images`, and returns the other arrays of these rows."""
        ...


class WorkerPool:
    """Worker processes for all batches of a run. They are started when the first batch needs them.

    Use it as a context manager, or call `close` at the end.

    Args:
      count: number of processes; 0 uses two threads of this process. None: one for each core, at most 16, and 0 on one
        or two cores.
    """

    def __init__(self, count: int | None = None):
        self.count = default_workers(usable_cores()) if count is None else count
        self._workers: list[_Worker] = []
        self._streams: dict[int, _Stream] = {}
        self._keys = itertools.count()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run_ahead(self, task: Task, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yields the batches `start` to `stop` - 1 of a task, read ahead. Several tasks may be open at once.

        Raises:
          UserError: a worker process was killed.
        """
        if stop <= start:
            return
        if self.count == 0:
            yield from _run_in_threads(task, start, stop)
            return
        stream = _Stream(next(self._keys), task, range(start, stop), workers=self.count)
        self._streams[stream.key] = stream
        try:
            while True:
                stream.begin_batches()
                if not stream.batches:
                    return
                self._hand_out(stream)
                while stream.batches[0].missing:
                    if stream.key not in self._streams:
                        raise RuntimeError("the worker pool was closed while batches were read")
                    self._receive()
                    self._hand_out(stream)
                yield stream.take()
        finally:
            self._streams.pop(stream.key, None)
            for worker in self._workers:
                worker.forget(stream)

    def close(self) -> None:
        """Ends the workers."""
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():  # a read from a network disk may hang
                worker.process.kill()
                worker.process.join()
        self._workers = []
        self._streams = {}

    def _hand_out(self, stream: _Stream) -> None:
        """Gives the pieces of a stream to the workers with the shortest backlogs. Starts workers while all are busy."""
        while stream.pieces:
            worker = min(self._workers, key=lambda worker: worker.backlog, default=None)
            if (worker is None or worker.backlog) and len(self._workers) < self.count:
                if not self._workers:
                    atexit.register(self.close)  # runs before multiprocessing waits for the workers
                worker = _Worker(len(self._workers))
                self._workers.append(worker)
            assert worker is not None
            if worker.backlog >= _BACKLOG:
                return
            try:
                worker.send(stream, stream.pieces[0])
            except OSError as e:
                raise self._death_error(worker) from e
            stream.pieces.popleft()

    def _receive(self) -> None:
        """Waits for pieces that workers have finished."""
        ready = wait([worker.connection for worker in self._workers])
        for worker in [worker for worker in self._workers if worker.connection in ready]:
            try:
                key, number, row, result = worker.connection.recv()
            except (EOFError, OSError) as e:
                raise self._death_error(worker) from e
            worker.backlog -= 1
            if key in self._streams:  # else it was closed meanwhile
                self._streams[key].add(number, row, result)

    def _death_error(self, worker: _Worker) -> UserError:
        """Returns the error for a worker that has ended, after ending the others."""
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        self.close()
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}"
            fix = "If the machine ran out of memory, set data.workers or data.batch_size lower"
        else:
            how, fix = f"ended with status {code}", "Look for its own message above, or set data.workers to 0"
        return UserError(
            f"data.workers: got a worker process that was {how}, expected it to read images until the end. {fix}. Run "
            "the same command to resume."
        )


def _run_in_threads(task: Task, start: int, stop: int) -> Generator[Batch, None, None]:
    def read(number: int) -> Batch:
        images = np.zeros(task.shape, np.uint8)
        return {"image": images} | task.read(number, slice(0, len(images)), images)

    threads = ThreadPoolExecutor(2, thread_name_prefix="read")
    numbers = iter(range(start, stop))
    try:
        waiting = deque(threads.submit(read, number) for number in itertools.islice(numbers, 4))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(threads.submit(read, number) for number in itertools.islice(numbers, 1))
            yield batch
    finally:
        threads.shutdown(cancel_futures=True)


@dataclass
class _Batch:
    """A batch that is being read.

    Attributes:
      number: of the task.
      slot: place of its images in the shared memory.
      missing: number of rows that have not arrived.
      pieces: first row -> its arrays, or the error of reading it.
    """

    number: int
    slot: int
    missing: int
    pieces: dict[int, Batch | Exception] = field(default_factory=dict)


class _Stream:
    """One use of a task, as the caller sees it: which batches are being read, and the memory for them.

    Attributes:
      key: identifies it.
      memory: shared with the workers.
      batches: those in progress or ready, in order.
      pieces: (number, slot, first row, last row + 1) of pieces that no worker has got yet.
    """

    def __init__(self, key: int, task: Task, numbers: range, *, workers: int):
        self.key = key
        self.batches: deque[_Batch] = deque()
        self.pieces: deque[tuple[int, int, int, int]] = deque()
        self._numbers = iter(numbers)
        self._rows = rows = task.shape[0]
        self._piece = min(max(-(-rows // workers), _ROWS[0]), _ROWS[1], rows)
        self._ahead = min(2 + -(-2 * workers * self._piece // rows), len(numbers))  # two pieces for each worker
        self.memory = _Memory(task, slots=self._ahead + _LENT)
        self._free = deque(range(self._ahead + _LENT))

    def begin_batches(self) -> None:
        """Begins as many batches as may be read ahead."""
        while len(self.batches) < self._ahead and (number := next(self._numbers, None)) is not None:
            batch = _Batch(number, self._free.popleft(), self._rows)
            self.batches.append(batch)
            for row in range(0, self._rows, self._piece):
                self.pieces.append((number, batch.slot, row, min(row + self._piece, self._rows)))

    def add(self, number: int, row: int, result: Batch | Exception) -> None:
        """Adds a piece that a worker has finished."""
        batch = self.batches[number - self.batches[0].number]
        batch.pieces[row] = result
        batch.missing -= min(self._piece, self._rows - row)

    def take(self) -> Batch:
        """Removes and returns the first batch, or raises the error of reading it."""
        batch = self.batches.popleft()
        pieces: list[Batch] = []
        for _, piece in sorted(batch.pieces.items()):
            if isinstance(piece, Exception):
                raise piece
            pieces.append(piece)
        images = self.memory.images(batch.slot)
        if self.memory.slots - len(self._free) - len(self.batches) > _LENT:
            images = images.copy()
            self._free.append(batch.slot)
        else:  # the slot is free when the caller, or JAX for it, has released the last view of the images
            weakref.finalize(images.base, self._free.append, batch.slot).atexit = False
        rest = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return {"image": images} | rest


class _Memory:
    """Anonymous memory shared with the workers: slots for the images of batches, then the large arrays of the task.

    Attributes:
      slots: number of slots.
      file: descriptor of the anonymous file.
      places: where in the file the shared arrays begin, and (offset, size) of what `_OpenTask` unpickles.
    """

    def __init__(self, task: Task, *, slots: int):
        self.slots = slots
        self._shape = task.shape
        arrays: list[memoryview] = []

        def keep_in_pickle(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes >= _SHARED:
                arrays.append(view)
            return view.nbytes < _SHARED

        pickled = cloudpickle.dumps(task, protocol=5, buffer_callback=keep_in_pickle)
        offsets = [0, *itertools.accumulate(_aligned(view.nbytes, 64) for view in arrays)]
        message = pickle.dumps((pickled, [(offset, view.nbytes) for offset, view in zip(offsets, arrays)]))
        start = _aligned(slots * _stride(task.shape), mmap.ALLOCATIONGRANULARITY)
        self.file = _anonymous_file(start + offsets[-1] + len(message))
        weakref.finalize(self, os.close, self.file)
        self._memory = mmap.mmap(self.file, 0)
        for offset, view in zip(offsets, [*arrays, memoryview(message)]):
            self._memory[start + offset : start + offset + view.nbytes] = view
        self.places = start, offsets[-1], len(message)

    def images(self, slot: int) -> np.ndarray:
        """Returns the images of a slot, uint8 [b, h, w, c]: a view of an array that is created for this call."""
        return _slot(self._memory, slot, self._shape)


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to


def _stride(shape: tuple[int, ...]) -> int:
    return _aligned(math.prod(shape), 64)


def _slot(memory: mmap.mmap, slot: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(memory, np.uint8, math.prod(shape), slot * _stride(shape)).reshape(shape)


def _anonymous_file(size: int) -> int:
    """Returns the descriptor of a file in memory without a name. Its pages take memory once they are written."""
    # Unlike files in /dev/shm, those of memfd_create are not limited to the 64 MiB that Docker gives by default.
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("batches")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, size)
    return file


class _Worker:
    """A worker process, as the main process sees it.

    Attributes:
      process: the process.
      connection: its pipe.
      backlog: number of pieces that it has not finished.
    """

    def __init__(self, index: int):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name=f"reader {index}", daemon=True)
        resource_tracker.ensure_running()  # which would unblock the signals
        # Ctrl-C reaches every process of a terminal, and SIGTERM every process of a job. Only the main process handles
        # them: it may want to save, and evaluate before, and closes the pipe at the end.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.process.start()  # inherits the mask, and keeps it
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.backlog = 0
        self._opened: set[int] = set()

    def send(self, stream: _Stream, piece: tuple[int, int, int, int]) -> None:
        """Gives it a piece to read, after its first one also the task."""
        if stream.key not in self._opened:
            self.connection.send(("open", stream.key, *stream.memory.places))
            with socket.socket(fileno=os.dup(self.connection.fileno())) as pipe:
                socket.send_fds(pipe, [b"0"], [stream.memory.file])
            self._opened.add(stream.key)
        self.connection.send(("read", stream.key, *piece))
        self.backlog += 1

    def forget(self, stream: _Stream) -> None:
        """Makes it release the task and the memory of a stream."""
        if stream.key in self._opened:
            self._opened.remove(stream.key)
            with contextlib.suppress(OSError):  # it has ended, which the next batch reports
                self.connection.send(("close", stream.key))


class _OpenTask:
    """A task in a worker process, with the memory for its results."""

    def __init__(self, file: int, start: int, offset: int, size: int):
        self.memory = mmap.mmap(file, start)
        # Copied where a source writes to its arrays, so that workers cannot disturb each other.
        shared = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_COPY, offset=start))
        pickled, places = pickle.loads(shared[offset : offset + size])
        self.task: Task = pickle.loads(pickled, buffers=[shared[first : first + n] for first, n in places])

    def read(self, number: int, slot: int, row: int, end: int) -> Batch:
        images = _slot(self.memory, slot, self.task.shape)
        return self.task.read(number, slice(row, end), images[row:end])


def _serve(connection: Connection) -> None:
    """Reads pieces until the pipe closes: the whole life of a worker process."""
    tasks: dict[int, _OpenTask | Exception] = {}
    try:
        while True:
            kind, key, *message = connection.recv()
            if kind == "open":
                tasks[key] = _open(connection, message)
            elif kind == "close":
                del tasks[key]
            else:
                number, slot, row, end = message
                connection.send((key, number, row, _read(tasks[key], number, slot, row, end)))
    except (EOFError, ConnectionError):
        pass  # the main process has closed the pipe, or has ended


def _open(connection: Connection, message: list[Any]) -> _OpenTask | Exception:
    with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        _, (file,), *_ = socket.recv_fds(pipe, 1, 1)
    try:
        return _OpenTask(file, *message)
    except Exception as e:
        return _portable(e)
    finally:
        os.close(file)


def _read(task: _OpenTask | Exception, number: int, slot: int, row: int, end: int) -> Batch | Exception:
    if isinstance(task, Exception):
        return task
    try:
        return task.read(number, slot, row, end)
    except Exception as e:
        return _portable(e)


def _portable(error: Exception) -> Exception:
    """Returns an error that can be pickled, with its traceback in this process as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, UserError):
        error.add_note(f"In a worker process:\n{text}")
    return error

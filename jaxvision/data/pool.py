"""Worker processes that read batches ahead of the step, one pool for training and evaluation.

Workers import this module and unpickle tasks, so neither it nor the modules it imports may import JAX. They are spawned
instead of forked, because JAX's threads would not survive a fork. A script that trains with workers must therefore
guard its main part with ``if __name__ == "__main__":``, as always with Python's multiprocessing.
"""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection

import numpy as np

from jaxvision.data.shared import Place, SharedFile, dump, load, open_shared
from jaxvision.errors import UserError
from jaxvision.parallel.cores import default_workers, usable_cores

Batch = dict[str, np.ndarray]  # image uint8 [b, h, w, c], label int32 [b], index int32 [b], mask bool [b]
Task = Callable[[int], Batch]  # number -> batch


#: Errors of the system that fewer workers avoid -> what else does.
_SHORTAGES = {
    errno.ENOMEM: "",
    errno.EMFILE: ", or raise the limit of open files with: ulimit -n 65536",
    errno.ENFILE: ", or raise the limit of open files of this machine",
}


class WorkerPool:
    """Worker processes for all batches of a run. They are started when the first batches need them.

    Use it as a context manager, or call `close` at the end.

    Args:
      count: number of processes; 0 uses two threads of this process. None: one for each core, at most 16, and 0 on one
        or two cores.
    """

    def __init__(self, count: int | None = None):
        self.count = default_workers(usable_cores()) if count is None else count
        self._executor: Executor | None = None
        self._lifeline: Connection | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run_ahead(self, task: Task, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yields the batches `start` to `stop` - 1 of a task, read ahead.

        Several generators may be open at once. Each takes memory for one batch per worker and two more.

        Args:
          task: number -> batch. Workers receive a copy whose large arrays are in shared memory.
          start: the first number.
          stop: one past the last number.

        Raises:
          UserError: a worker process was killed, or there is too little memory or there are too many open files.
        """
        if stop <= start:
            return
        executor = self._executor = self._executor or self._start()
        waiting: deque[Future[Batch] | _RemoteBatch] = deque()
        with ExitStack() as stack:
            submit = self._submitter(executor, task, stack)
            stack.callback(lambda: [batch.cancel() for batch in waiting])
            try:
                for number in range(start, stop):
                    waiting.append(submit(number))
                    if len(waiting) >= (self.count or 2) + 2:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool:
                self.close()
                raise UserError(
                    "data.workers: got a worker process that was killed or failed, expected it to read images until "
                    "the end. If it printed no error, the machine probably ran out of memory: set data.workers or "
                    "data.batch_size lower. Run the same command to resume."
                ) from None
            except (MemoryError, OSError) as e:
                if isinstance(e, OSError) and e.errno not in _SHORTAGES:
                    raise
                reason, more = str(e) or "not enough memory", _SHORTAGES.get(getattr(e, "errno", 0), "")
                raise UserError(
                    f"data.workers: cannot read a batch of images ({reason}). Set data.workers or data.batch_size "
                    f"lower{more}. Run the same command to resume."
                ) from e

    def close(self) -> None:
        """Ends the workers at once."""
        if self._lifeline is not None:
            self._lifeline.close()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        self._lifeline = self._executor = None

    def _submitter(
        self, executor: Executor, task: Task, stack: ExitStack
    ) -> Callable[[int], Future[Batch] | _RemoteBatch]:
        """Returns a function that begins to read the batch of a number."""
        if self.count == 0:
            return lambda number: executor.submit(task, number)
        shared = stack.enter_context(closing(SharedFile()))
        sizes = dump(task, shared.file)
        return lambda number: _RemoteBatch(executor, shared.place, sizes, number)

    def _start(self) -> Executor:
        if self.count == 0:
            return ThreadPoolExecutor(2, thread_name_prefix="read")
        context = multiprocessing.get_context("spawn")
        theirs, self._lifeline = context.Pipe(duplex=False)
        return ProcessPoolExecutor(self.count, context, initializer=_start_worker, initargs=(theirs,))


class _RemoteBatch:
    """A batch that a worker process reads. It is like a `Future`, but arrives in a file.

    In the executor's pipe it would be copied several times, and a worker that is killed while it writes a long message
    blocks the main process forever.
    """

    def __init__(self, executor: Executor, task: Place, sizes: tuple[int, ...], number: int):
        self._file = SharedFile()
        # Ctrl-C reaches every process of a terminal, and SIGTERM every process of a job. Only the main process handles
        # them: it may want to save, and evaluate before. A worker that `submit` starts inherits the mask, and keeps it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._sizes = executor.submit(_write_batch, task, sizes, number, self._file.place)
        except BaseException:
            self._file.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def result(self) -> Batch:
        with closing(self._file):
            return load(self._file.file, self._sizes.result())

    def cancel(self) -> None:
        # A worker that begins to read it finds no file. The executor's own `cancel` can break the executor: it then
        # fails to report a worker that was killed (fixed in Python 3.13).
        self._file.close()


def _start_worker(lifeline: Connection) -> None:
    def exit_at_end() -> None:
        with suppress(EOFError, OSError):
            lifeline.recv()  # returns when the main process closes its end or ends itself, even by a `kill -9`
        os._exit(0)

    threading.Thread(target=exit_at_end, daemon=True).start()


@functools.lru_cache(maxsize=2)  # for training and an evaluation
def _load_task(place: Place, sizes: tuple[int, ...]) -> Task:
    with open_shared(place) as file:
        return load(file, sizes)


def _write_batch(task: Place, task_sizes: tuple[int, ...], number: int, place: Place) -> tuple[int, ...]:
    """Writes a batch to a file, in a worker process. Returns the sizes of its parts."""
    with open_shared(place) as file:  # fails at once if the batch is no longer wanted
        try:
            return dump(_load_task(task, task_sizes)(number), file)
        except Exception as e:
            try:
                pickle.loads(pickle.dumps(e))
            except Exception:
                raise RuntimeError(f"{type(e).__name__}: {e}") from e  # `e` itself could not reach the main process
            raise

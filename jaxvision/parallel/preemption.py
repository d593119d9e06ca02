"""SIGTERM, which a cluster sends some seconds before it takes a machine away."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any, NoReturn

import jax

from jaxvision.errors import Preempted
from jaxvision.parallel import distributed


class Preemption:
    """Listens for SIGTERM during a run, so that the run can save and stop.

    Before `working` is called there is nothing to save, and a SIGTERM ends the process at once, even while it compiles
    for minutes, when Python runs no signal handler. After `working`, `check` returns True once a SIGTERM has arrived,
    until `nothing_to_lose` is called. With several processes `check` returns True on all of them at the same call,
    whichever got the signal, through JAX's preemption service. A second SIGTERM changes nothing.

    Outside the main thread, as in a notebook's server, Python delivers no signals, and this class does nothing.

    Example:
      >>> with Preemption() as preemption:
      ...     preemption.working()
      ...     os.kill(os.getpid(), signal.SIGTERM)
      ...     while not preemption.check():
      ...         pass
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        self._busy = False
        self._calls = 0
        self._old: tuple[Any, int] | None = None
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            # A Python signal handler waits until the main thread returns from XLA. The number of the signal is written
            # to the pipe at once, and read by a thread.
            handler = signal.signal(signal.SIGTERM, lambda *_: None)
            self._old = handler, signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._listen, name="preemption", daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._old is not None and self._pipe is not None:
            signal.set_wakeup_fd(self._old[1])
            signal.signal(signal.SIGTERM, self._old[0] if self._old[0] is not None else signal.SIG_DFL)
            os.close(self._pipe[1])  # ends the thread
            self._old = self._pipe = None

    def _listen(self) -> None:
        assert self._pipe is not None
        pipe = self._pipe[0]
        with os.fdopen(pipe, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] == signal.SIGTERM:
                    self._received.set()
                    if not self._busy:
                        self._leave()

    def working(self) -> None:
        """Declares that from now on there is something to save."""
        if not self._busy and jax.process_count() > 1:
            distributed.start_preemption_service()  # which replaces the signal handler
        self._busy = True

    def nothing_to_lose(self) -> None:
        """Declares that everything is saved."""
        self._busy = False
        if self._old is not None and jax.process_count() > 1:
            signal.signal(signal.SIGTERM, lambda *_: None)  # instead of JAX's service, which is no longer queried
        if self._received.is_set():
            self._leave()

    def _leave(self) -> NoReturn:
        print("stopped by SIGTERM: nothing to save. Run the same command to resume.", file=sys.stderr, flush=True)
        sys.stdout.flush()
        for child in multiprocessing.active_children():  # they would wait for work forever
            child.kill()
        os._exit(Preempted.STATUS)

    def check(self) -> bool:
        """Returns whether the run must stop. All processes get the same answer; all must call it equally often."""
        if not self._busy:
            return False
        self._calls += 1
        if jax.process_count() == 1:
            return self._received.is_set()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(self._calls)

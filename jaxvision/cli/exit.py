"""Exit statuses and signals of the command line, for ``jaxvision`` and ``python -m jaxvision.main``."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

from jaxvision.errors import (
    Preempted,
    UserError,
    is_lost_connection,
    memory_errors_as_user_errors,
    printable,
    printable_line,
)

SOME_FAILED = 1
MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as in shells


def exit_status(command: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status.

    Prints a `UserError`, a lack of memory on a device, or a file name that is too long, as one line. Returns 0 if the
    command returns None.

    Example:
      >>> exit_status(lambda: None), exit_status(lambda: 1)
      (0, 1)
    """
    try:
        with memory_errors_as_user_errors("Use a smaller model, smaller images or fewer of them at once."):
            return command() or 0
    except UserError as e:
        process = os.environ.get("JAX_PROCESS_ID") or os.environ.get("SLURM_PROCID") or "0"
        print(f"error{'' if process == '0' else f' in process {process}'}: {e}", file=sys.stderr)
        return MISTAKE
    except Preempted as e:
        from jaxvision.parallel import distributed

        if distributed.is_main():
            print(e, file=sys.stderr)
        return Preempted.STATUS
    except KeyboardInterrupt as e:
        if e.args:
            print(e, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # jaxvision list | head
        sys.stderr.close()
        return 0
    except OSError as e:  # Path.is_file and others raise it
        if e.errno != errno.ENAMETOOLONG:
            raise
        name = "" if e.filename is None else f"{printable_line(str(e.filename))}: "
        print(f"error: {name}{e.strerror}. Check the path.", file=sys.stderr)
        return MISTAKE


def run_and_exit(command: Callable[[], int], *, preemptible: bool = False) -> None:
    """Runs a command and ends the process with the status that it returns.

    Args:
      command: returns an exit status, as `exit_status` does.
      preemptible: exit with `Preempted.STATUS` on SIGTERM, until the command installs a handler of its own.
    """
    if preemptible:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(Preempted.STATUS))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for file names that the terminal cannot encode
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(_LogFormatter())
    logging.basicConfig(handlers=[handler])  # before a library does it, which would print the names of loggers
    logging.getLogger("jaxvision.notes").setLevel(logging.INFO)  # messages that the commands print as notes
    sys.unraisablehook = _handle_unraisable
    threading.excepthook = _handle_thread_exception
    # Python's tracker of semaphores warns in a process of its own when it removes those of workers whose parent was
    # killed. Nothing is left to do then.
    quiet = (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, quiet))
    # Orbax leaves a coroutine behind when a save fails.
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
    try:
        status = command()
    except Exception as e:
        if _is_distributed():
            _exit_distributed(e)
        raise
    if status not in (0, Preempted.STATUS) and _is_distributed():
        from jaxvision.parallel import distributed

        distributed.exit_with_shutdown(status)
    if status == INTERRUPTED:
        # XLA may still be compiling, and an ordinary exit of Python would then crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status == Preempted.STATUS:  # Python restores the default handlers while it exits, but not this one
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(status)


class _LogFormatter(logging.Formatter):
    """Formats log records of libraries and jaxvision like the warnings and notes of the commands."""

    def format(self, record: logging.LogRecord) -> str:
        kind = "note" if record.levelno == logging.INFO else record.levelname.lower()
        return f"{kind}: {printable(super().format(record))}"


def _is_distributed() -> bool:
    """Returns whether this process is one of several that train together."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _exit_distributed(error: Exception) -> NoReturn:
    """Prints an error and ends this process, one of several."""
    from jaxvision.parallel import distributed

    if is_lost_connection(error):
        time.sleep(1)  # so that a log of all processes shows the process that failed first
        print(f"error: {_lost_connection_text(distributed.lost_processes(), error)}", file=sys.stderr)
        distributed.exit_without_shutdown(1)
    traceback.print_exception(error)
    traceback.clear_frames(error.__traceback__)  # frees the batches that its frames hold
    distributed.exit_with_shutdown(1)


def _lost_connection_text(lost: list[int], error: Exception) -> str:
    which = f"process{'es' * (len(lost) > 1)} {', '.join(map(str, lost))}" if lost else "another process"
    return (
        f"lost the connection to {which} ({str(error).splitlines()[0][:200]}). Look for its error first: without one, "
        "it was killed, or its host or its network failed. Run the same command to resume."
    )


def _handle_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if unraisable.exc_type is KeyboardInterrupt:
        # Python drops exceptions in finalizers and in callbacks of the garbage collector, such as JAX's, including
        # KeyboardInterrupt. Send the signal again a little later.
        threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
        return
    # TensorStore raises this once for every write that was pending when one failed, for example on a full disk.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _handle_thread_exception(exception: threading.ExceptHookArgs) -> None:
    # tensorboardX writes in a thread, which fails on a full disk. The run itself reports the full disk.
    is_writer = type(exception.thread).__module__.startswith("tensorboardX")
    if not (is_writer and isinstance(exception.exc_value, OSError)):
        threading.__excepthook__(exception)

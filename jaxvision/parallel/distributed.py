"""Training in several processes, each with its own devices."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

import jax

from jaxvision.errors import UserError, first_line

#: Seconds until the other processes notice that a process died.
HEARTBEAT = 30
#: Seconds that a process which ends with an error waits for the others to end with theirs.
LEAVE = 10
_TRIPLE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(environment: Mapping[str, str] | None = None) -> bool:
    """Joins this process to the other processes of its job, if the environment names any.

    Call it before anything that queries JAX's devices. It reads

    - ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, set by hand;
    - ``JAXVISION_DISTRIBUTED=1``: JAX detects the cluster (TPU pods, Kubernetes);
    - the variables of Slurm's ``srun`` and Open MPI's ``mpirun`` with more than one process.

    Args:
      environment: environment variables. Default: ``os.environ``.

    Returns:
      Whether this process joined others. False on a single machine, where nothing is done.

    Raises:
      UserError: one of the three variables is missing, or they are not numbers in range.

    Example:
      >>> initialize({})
      False
    """
    env = os.environ if environment is None else environment
    if any(name in env for name in _TRIPLE):
        missing = [name for name in _TRIPLE if name not in env]
        if missing:
            raise UserError(
                f"distributed: {' and '.join(missing)} must be set, too. Set all of {', '.join(_TRIPLE)}, or none."
            )
        address, count, index = (env[name] for name in _TRIPLE)
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise UserError(
                f"distributed: got JAX_PROCESS_ID={index}, expected a number from 0 to JAX_NUM_PROCESSES - 1, with "
                f"JAX_NUM_PROCESSES={count}."
            )
        _join(address, int(count), int(index))
        return True
    if env.get("JAXVISION_DISTRIBUTED", "0") not in ("", "0") or _launched(env):
        _join()
        return True
    return False


def _join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    # JAX's preemption service starts later, because a process that still starts up may end at once on SIGTERM.
    # See `jaxvision.parallel.preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, IndexError) as e:
        reason = first_line(e)
        if address:
            raise UserError(
                f"distributed: got JAX_COORDINATOR_ADDRESS={address}, expected host:port ({reason})."
            ) from e
        raise UserError(f"distributed: JAX does not detect a cluster ({reason}). Set {', '.join(_TRIPLE)}.") from e


def start_preemption_service() -> None:
    """Makes JAX listen for SIGTERM, so that `multihost_utils.reached_preemption_sync_point` reports it everywhere."""
    from jax._src import distributed  # JAX has no public way to start the service after `initialize`

    jax.config.update("jax_enable_preemption_service", True)
    if distributed.global_state.preemption_sync_manager is None:
        distributed.global_state.initialize_preemption_sync_manager()


def lost_processes(wait: float = 5) -> list[int]:
    """Returns the indices of the processes that have ended. Call it in a process that has lost a connection.

    Every surviving process announces itself to JAX's coordinator, so each learns which others survive.

    Args:
      wait: seconds to wait for the others. The wait ends when only one is missing.

    Returns:
      Indices of processes. Empty if all survive, as after a short network failure, or if it is unknown.
    """
    from jax._src import distributed  # JAX has no public way to send a message to another process

    client: Any = distributed.global_state.client
    count, end = jax.process_count(), time.monotonic() + wait
    lost = set(range(count))
    try:
        client.key_value_set(f"jaxvision/alive/{jax.process_index()}", "")
        while len(lost) > 1 and time.monotonic() < end:
            time.sleep(0.1)
            lost -= {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get("jaxvision/alive")}
    except jax.errors.JaxRuntimeError:  # process 0 is the coordinator
        return [0]
    except AttributeError:  # another version of JAX
        return []
    only_this_one_answered = len(lost) == count - 1 > 1  # it may be this one that was cut off
    return [] if only_this_one_answered else sorted(lost)


def exit_without_shutdown(status: int) -> NoReturn:
    """Exits a process that has lost its connection to another, without JAX's shutdown.

    Process 0 waits `LEAVE` seconds first, because JAX aborts the others when it exits. That is shorter than the
    heartbeat timeout, after which JAX aborts all processes.

    Args:
      status: exit status.
    """
    _flush_and_release()
    if is_main():
        time.sleep(LEAVE)
    os._exit(status)


def exit_with_shutdown(status: int) -> NoReturn:
    """Exits a process that has failed, while others of its job may still run.

    If the others fail with the same error, all end together. If they wait for a message of this process, it exits after
    `LEAVE` seconds, and the others lose their connection to it.

    Args:
      status: exit status.
    """
    _flush_and_release()
    threading.Timer(LEAVE, os._exit, (status,)).start()
    with suppress(Exception):
        jax.distributed.shutdown()
    os._exit(status)


def _flush_and_release() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()  # ends the workers that read images, and frees the memory they share


def _launched(env: Mapping[str, str]) -> bool:
    # SLURM_NTASKS is also set in an interactive allocation, where one process would wait forever for the others.
    counts = (env.get("SLURM_STEP_NUM_TASKS", "1"), env.get("OMPI_COMM_WORLD_SIZE", "1"))
    return any(count.isdigit() and int(count) > 1 for count in counts)


def is_main() -> bool:
    """Returns whether this is process 0, which prints, and writes the files that only one process may write."""
    return jax.process_index() == 0

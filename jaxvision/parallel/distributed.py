"""Several processes as one machine."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

import jax

from jaxvision.errors import UserError

HEARTBEAT = 30  # seconds
LEAVE = 10  # seconds that a process which ends with a mistake waits for the others to end with theirs
_TRIPLE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(environment: Mapping[str, str] | None = None) -> bool:
    """Joins this process to the others of its job, where the environment says that there are others.

    Call it first thing: once JAX has looked at its devices it is too late. Understood are

    - ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, set by hand;
    - ``JAXVISION_DISTRIBUTED=1``: JAX finds out by itself (TPU pods, Kubernetes);
    - a task of Slurm's ``srun`` or Open MPI's ``mpirun`` with more than one process.

    Args:
      environment: variables to look at, ``os.environ`` by default.

    Returns:
      Whether the process was joined to others. False, and nothing done, on a single machine.

    Raises:
      UserError: the coordinator is given without the other two, or they are not numbers that fit.

    Example:
      >>> initialize({})
      False
    """
    env = os.environ if environment is None else environment
    if any(name in env for name in _TRIPLE):
        missing = [name for name in _TRIPLE if name not in env]
        if missing:
            raise UserError(f"distributed: {' and '.join(missing)} must be set, too; all three or none")
        address, count, index = (env[name] for name in _TRIPLE)
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise UserError(
                f"distributed: JAX_PROCESS_ID={index} must be a number from 0 to JAX_NUM_PROCESSES={count} minus one"
            )
        _join(address, int(count), int(index))
        return True
    if env.get("JAXVISION_DISTRIBUTED", "0") not in ("", "0") or _launched(env):
        _join()
        return True
    return False


def _join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    # Not yet: while a process starts it may as well end at once. See `jaxvision.parallel.preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    # A process that died is noticed by the others after this time, and ends them with an error that names it.
    try:
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, IndexError) as e:
        given = f"JAX_COORDINATOR_ADDRESS is host:port, got {address}" if address else "JAX finds no cluster here"
        raise UserError(f"distributed: {given} ({str(e).splitlines()[0]})") from e


def start_preemption_service() -> None:
    """Has JAX listen for SIGTERM, which `multihost_utils.reached_preemption_sync_point` tells all processes of."""
    from jax._src import distributed  # there is no public way to start it later than at `initialize`

    jax.config.update("jax_enable_preemption_service", True)
    if distributed.global_state.preemption_sync_manager is None:
        distributed.global_state.initialize_preemption_sync_manager()


def leave(status: int, *, after: float = LEAVE) -> NoReturn:
    """Ends a process that has failed, with its exit status, among others that may not know of it.

    They may be at their end with the same mistake: then all leave together. Else they wait for this one in a message,
    and JAX would wait for them: this process goes, and they hear of it by its missing heartbeats.

    Args:
      status: of the process.
      after: seconds to wait for the others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()  # what reads pictures, and the memory that it shares
    threading.Timer(after, os._exit, (status,)).start()
    with suppress(Exception):
        jax.distributed.shutdown()
    os._exit(status)


def _launched(env: Mapping[str, str]) -> bool:
    # SLURM_STEP_NUM_TASKS, not SLURM_NTASKS: the latter is also set in an interactive allocation, where one process
    # would wait for the others for ever.
    counts = (env.get("SLURM_STEP_NUM_TASKS", "1"), env.get("OMPI_COMM_WORLD_SIZE", "1"))
    return any(count.isdigit() and int(count) > 1 for count in counts)


def is_main() -> bool:
    """Returns whether this is the process that speaks, and that writes what only one may write."""
    return jax.process_index() == 0

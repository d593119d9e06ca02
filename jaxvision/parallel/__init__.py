"""Devices and processes: the mesh, the layout of arrays over it, joining processes, and SIGTERM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxvision.lazy import lazy_names

if TYPE_CHECKING:
    from jaxvision.parallel.accelerators import check_accelerator
    from jaxvision.parallel.distributed import initialize, is_main
    from jaxvision.parallel.mesh import batch_sharding, make_mesh, process_share, replicated, shard_batch
    from jaxvision.parallel.preemption import Preemption
    from jaxvision.parallel.rules import Rules, largest_axis, make_rules, state_bytes, state_shardings

__all__ = [
    "Preemption",
    "Rules",
    "batch_sharding",
    "check_accelerator",
    "initialize",
    "is_main",
    "largest_axis",
    "make_mesh",
    "make_rules",
    "process_share",
    "replicated",
    "shard_batch",
    "state_bytes",
    "state_shardings",
]

# Imported on first use: `jaxvision doctor` reads the files of `accelerators` even if JAX cannot be imported.
_HOME = {
    "accelerators": ("check_accelerator",),
    "distributed": ("initialize", "is_main"),
    "mesh": ("batch_sharding", "make_mesh", "process_share", "replicated", "shard_batch"),
    "preemption": ("Preemption",),
    "rules": ("Rules", "largest_axis", "make_rules", "state_bytes", "state_shardings"),
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)

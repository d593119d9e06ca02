"""The flags with which tests compile; this module must not import JAX, which reads them when it starts."""

from __future__ import annotations

import jaxlib.version

#: The least effort, for programs that run once. The newest jaxlib has only one kind of emitters and no flag for it.
LEAST_EFFORT = ["--xla_backend_optimization_level=0"]
if jaxlib.version.__version_info__ < (0, 11):
    LEAST_EFFORT.append("--xla_cpu_use_fusion_emitters=false")


def xla_flags(devices: int = 1) -> str:
    """Returns XLA_FLAGS for a process that a test starts: the CPU as `devices` devices."""
    return " ".join([*LEAST_EFFORT, f"--xla_force_host_platform_device_count={devices}"])

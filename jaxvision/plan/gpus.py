"""Compiling for NVIDIA GPUs that this machine does not have.

JAX's CUDA plugin holds the compiler. It needs neither a GPU nor a driver, only a description of the GPU. JAX tests this
use in tests/deviceless_aot_test.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jaxvision.errors import UserError, missing_package_error

_KIB, _MIB = 2**10, 2**20

#: The largest number of GPUs of these kinds in one machine.
MOST_GPUS = 8


@dataclass(frozen=True)
class Architecture:
    """What the compiler has to know of a GPU, besides its data sheet.

    Attributes:
      capability: compute capability, such as ``(9, 0)``.
      multiprocessors: number of streaming multiprocessors.
      fpus: float32 units of each.
      clock: GHz.
      cache: bytes of the L2 cache.
      shared: bytes of shared memory of each multiprocessor.
      threads: most resident threads of each multiprocessor.
    """

    capability: tuple[int, int]
    multiprocessors: int
    fpus: int
    clock: float
    cache: int
    shared: int
    threads: int

    def as_text(self, name: str, *, memory: float, bandwidth: float) -> str:
        """Returns the description that the compiler reads, XLA's ``GpuTargetConfigProto`` as text.

        Args:
          name: of the GPU.
          memory: bytes.
          bandwidth: bytes per second to and from the memory.
        """
        major, minor = self.capability
        features = " feature_extension: ACCELERATED_FEATURES" if self.capability == (9, 0) else ""
        facts = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "threads_per_core_limit": self.threads,
            "core_count": self.multiprocessors,
            "fpus_per_core": self.fpus,
            "clock_rate_ghz": self.clock,
            "shared_memory_per_block": 48 * _KIB,
            "shared_memory_per_block_optin": self.shared - (0 if self.capability == (7, 5) else _KIB),
            "shared_memory_per_core": self.shared,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "l2_cache_size": self.cache,
            "memory_bandwidth": int(bandwidth),
            "device_memory_size": int(memory),
            "cuda_compute_capability": f"{{ major: {major} minor: {minor}{features} }}",
            # Not older than what jax[cuda12] installs. cuDNN's attention and XLA's choice of kernels depend on them.
            "driver_version": '"13.0.0"',
            "runtime_version": '"12.8.0"',
            "compile_time_toolkit_version": '"12.8.0"',
            "dnn_version": '"9.10.0"',
        }
        lines = "\n".join(f"  {key}{'' if str(value)[0] == '{' else ':'} {value}" for key, value in facts.items())
        return (
            f"gpu_device_info {{\n{lines}\n}}\n"
            'platform_name: "CUDA"\n'
            "dnn_version_info { major: 9 minor: 10 patch: 0 }\n"
            f'device_description_str: "{name}"\n'
        )


# NVIDIA's white papers of Turing, Ampere, Ada and Hopper for the chips, and the CUDA C++ programming guide, "Technical
# Specifications per Compute Capability", for shared memory and threads.
ARCHITECTURES = {
    "t4": Architecture((7, 5), 40, 64, 1.59, 4 * _MIB, 64 * _KIB, 1024),
    "l4": Architecture((8, 9), 58, 128, 2.04, 48 * _MIB, 100 * _KIB, 1536),
    "rtx3090": Architecture((8, 6), 82, 128, 1.695, 6 * _MIB, 100 * _KIB, 1536),
    "rtx4090": Architecture((8, 9), 128, 128, 2.52, 72 * _MIB, 100 * _KIB, 1536),
    "a100-40g": Architecture((8, 0), 108, 64, 1.41, 40 * _MIB, 164 * _KIB, 2048),
    "a100-80g": Architecture((8, 0), 108, 64, 1.41, 40 * _MIB, 164 * _KIB, 2048),
    "h100": Architecture((9, 0), 132, 128, 1.98, 50 * _MIB, 228 * _KIB, 2048),
    "h200": Architecture((9, 0), 132, 128, 1.98, 50 * _MIB, 228 * _KIB, 2048),
}


def has_bfloat16(name: str) -> bool:
    """Returns whether a device computes products of bfloat16. Of the GPUs of `ARCHITECTURES`, only the T4 does not.

    >>> has_bfloat16("h100"), has_bfloat16("t4")
    (True, False)
    """
    return name not in ARCHITECTURES or ARCHITECTURES[name].capability >= (8, 0)


def has_compiler() -> bool:
    """Returns whether JAX's CUDA plugin is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13))


def gpu_devices(name: str, n: int = 1, *, memory: float, bandwidth: float) -> Sequence[jax.Device]:
    """Returns the devices of a machine with GPUs of a kind, to compile for without the hardware.

    Args:
      name: a key of `ARCHITECTURES`.
      n: number of GPUs, at most `MOST_GPUS`.
      memory, bandwidth: as for `Architecture.as_text`.

    Raises:
      UserError: the number is not possible, or this version of JAX cannot describe the GPU.
      MissingPackage: JAX's CUDA plugin is not installed.
    """
    if not 1 <= n <= MOST_GPUS:
        raise UserError(f"device: got {n} GPUs, expected 1 to {MOST_GPUS}, as one machine has.")
    if not has_compiler():
        raise missing_package_error("jax-cuda12-plugin", "compiling for a GPU", "cuda12")
    from jax.experimental import topologies

    text = ARCHITECTURES[name].as_text(name, memory=memory, bandwidth=bandwidth)
    try:
        description = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=f"1x1x{n}", target_config=text
        )
    except Exception as e:
        raise UserError(
            f"device: jax {jax.__version__} cannot compile for {name} without one: {e}. Update jax[cuda12]."
        ) from e
    return description.devices

"""What data sheets say of TPUs and GPUs, and the topologies a program can be compiled for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax

from jaxvision.errors import UserError, missing_package_error, unknown_name_error
from jaxvision.parallel.accelerators import MEMORY_FRACTION

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What a data sheet says of one device; 0 where only the memory is known.

    Attributes:
      name: as on the command line.
      memory: bytes.
      flops: peak of matrix products a second, bfloat16 in and float32 out, without sparsity.
      flops_float32: of float32 at JAX's default precision: the same unit on a TPU, TF32 on a GPU.
      bandwidth: bytes a second to and from the memory.
      link: bytes a second along one link to a neighbor, one way.
      torus: along how many chips in a row the links close to a ring.
    """

    name: str
    memory: float
    flops: float = 0.0
    flops_float32: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    torus: int = 0


# TPUs: https://docs.cloud.google.com/tpu/docs/v5e, v5p, v6e ("key specifications"; the interconnect of a chip is given
# for all ports and both ways: by 4 ports, on v5p 6, and 2). The memory is what the compiler hands out, which
# it says when a program is too large. Rings close along 16 chips on v5e and v6e, on v5p along any multiple of 4.
# GPUs: the makers' data sheets, dense, with float32 accumulation. Their "GB" of memory are GiB.
TPUS = {
    "v5e": Chip("v5e", 15.75 * GIB, 197e12, 197e12, 819e9, 400e9 / 8, 16),
    "v5p": Chip("v5p", 95.74 * GIB, 459e12, 459e12, 2765e9, 1200e9 / 12, 4),
    "v6e": Chip("v6e", 31.25 * GIB, 918e12, 918e12, 1638e9, 800e9 / 8, 16),
}
GPUS = {
    "t4": Chip("t4", 16 * GIB, 65e12, 8.1e12, 320e9),  # has no bfloat16: the number is float16's
    "l4": Chip("l4", 24 * GIB, 121e12, 60e12, 300e9),
    "rtx3090": Chip("rtx3090", 24 * GIB, 71e12, 35.6e12, 936e9),
    "rtx4090": Chip("rtx4090", 24 * GIB, 165.2e12, 82.6e12, 1008e9),
    "a100-40g": Chip("a100-40g", 40 * GIB, 312e12, 156e12, 1555e9),
    "a100-80g": Chip("a100-80g", 80 * GIB, 312e12, 156e12, 2039e9),
    "h100": Chip("h100", 80 * GIB, 989e12, 494e12, 3350e9),
    "h200": Chip("h200", 141 * GIB, 989e12, 494e12, 4800e9),
}


def device(name: str) -> Chip:
    """Returns the device of a name such as ``h100``, or a memory such as ``8GB``.

    A GPU has the share of its memory that JAX takes: three quarters, unless ``XLA_CLIENT_MEM_FRACTION`` is set.

    Raises:
      UserError: neither; the message names the nearest.

    Example:
      >>> round(device("24GB").memory / 2**30, 2), device("rtx4090").memory == device("24GB").memory
      (18.0, True)
    """
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?gi?b", name.lower())
    if size is None and name.lower() not in GPUS:
        raise unknown_name_error("device (or memory, such as 8GB)", name, GPUS)
    if size and not float(size[1]):
        raise UserError(f"a device has some memory, got {name}")
    chip = Chip(name, float(size[1]) * GIB) if size else GPUS[name.lower()]
    return Chip(**{**vars(chip), "memory": chip.memory * memory_fraction()})


def memory_fraction() -> float:
    """Returns the share of a GPU's memory that JAX takes when it starts."""
    name = next((name for name in MEMORY_FRACTION if name in os.environ), MEMORY_FRACTION[0])
    text = os.environ.get(name, "0.75")
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise UserError(f"{name}={text} is no share of the memory: it is above 0 and at most 1")


def topology(name: str) -> tuple[Sequence[jax.Device], Chip]:
    """Returns the devices of a TPU slice that is not there, to compile for, and what the data sheet says of one.

    Args:
      name: such as ``v5e:2x4``, ``v6e:16x16`` or ``v5p:4x4x4``; one chip is ``v5e:1x1``.

    Raises:
      UserError: no such topology.
      MissingPackage: libtpu, which holds the compiler, is not installed.
    """
    generation, _, grid = name.lower().partition(":")
    if generation not in TPUS:
        raise unknown_name_error("TPU", generation, TPUS)
    if not re.fullmatch(r"\d+x\d+(x\d+)?", grid):
        raise UserError(f"a topology is a TPU and its grid, such as {generation}:2x4; got {name!r}")
    sizes = [int(size) for size in grid.split("x")]
    sides, longest = (3, 28) if generation == "v5p" else (2, 16)  # beyond that libtpu aborts the process
    if len(sizes) != sides or not 1 <= min(sizes) <= max(sizes) <= longest:
        raise UserError(f"the grid of a {generation} has {sides} sides of at most {longest} chips; got {name!r}")
    try:
        import libtpu  # noqa: F401
    except ImportError as e:
        raise missing_package_error("libtpu", "compiling for a TPU", "tpu") from e
    from jax.experimental import topologies

    # libtpu looks for the machine it is on, complains on the console when that is no TPU, and works.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # nor is it taken: several may plan
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": f"{generation}-{math.prod(sizes)}"}
    os.environ |= {"TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
    options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(sizes) == 1 else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=f"{generation}:{grid}", **options).devices
    except Exception as e:
        known = "2x2x1, 2x2x2, 2x4x4, 4x4x4 and 4x4x8" if sides == 3 else "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 and 16x16"
        raise UserError(f"libtpu knows no topology {name!r}; there are {known}, among others") from e
    return devices, TPUS[generation]


def link_speed(chip: Chip, group: Sequence[Any], everyone: Sequence[Any]) -> float:
    """Returns the bytes a second that each chip of a group sends to the others while all of them do.

    Args:
      chip: what each is.
      group: devices of a topology that talk to each other.
      everyone: all of them; a row of the grid is a ring only if the group has the whole of it.
    """
    links = 0
    ours, sides = (zip(*(device.coords for device in devices), strict=True) for devices in (group, everyone))
    for span, side in zip((len(set(x)) for x in ours), (len(set(x)) for x in sides), strict=True):
        links += 0 if span == 1 else 2 if span == side and side % chip.torus == 0 else 1
    return chip.link * links

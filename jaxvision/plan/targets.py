"""The devices that a program can be compiled for without the hardware, and the speed of their links."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from jaxvision.errors import UserError, missing_package_error, unknown_name_error
from jaxvision.parallel.chips import GPUS, TPUS, Chip, chip_of, find_device, memory_fraction
from jaxvision.plan import gpus


def find_gpus(name: str) -> tuple[Sequence[jax.Device], Chip]:
    """Returns devices to compile for, and the data sheet of one of them.

    They are the GPUs of this machine if those are of this kind. Otherwise JAX's CUDA plugin, if it is installed,
    compiles without the hardware. Without it, the device is this machine's CPU, and its program is only an estimate.

    Args:
      name: a name in `GPUS`, or a memory such as ``8GB`` for an RTX 4090 with that memory, optionally with the number
        of GPUs in one machine: ``h100:8``.

    Raises:
      UserError: there is no such GPU, or it has no such number.
      MissingPackage: several GPUs, and the CUDA plugin is not installed.
    """
    kind, _, text = name.partition(":")
    chip = find_device(kind)
    if text and not text.isdecimal():
        raise UserError(f"device: got {name!r}, expected a GPU and a number of them, such as {kind}:8.")
    n = int(text or 1)
    present = jax.devices()
    if present[0].platform == "gpu" and chip_of(present[0]).name == chip.name and 1 <= n <= len(present):
        return present[:n], chip
    if n == 1 and not gpus.has_compiler():
        return jax.devices("cpu")[:1], chip
    sheet = GPUS.get(chip.name, GPUS["rtx4090"])
    memory = sheet.memory if chip.name in GPUS else chip.memory / memory_fraction()
    return gpus.gpu_devices(sheet.name, n, memory=memory, bandwidth=sheet.bandwidth), chip


def find_topology(name: str) -> tuple[Sequence[jax.Device], Chip]:
    """Returns the devices of a TPU slice, to compile for without hardware, and the data sheet of one of them.

    Args:
      name: such as ``v5e:2x4``, ``v6e:16x16`` or ``v5p:4x4x4``. One chip is ``v5e:1x1``.

    Raises:
      UserError: there is no such topology.
      MissingPackage: libtpu, which holds the compiler, is not installed.
    """
    generation, sizes = _parse_topology(name)
    try:
        import libtpu  # noqa: F401
    except ImportError as e:
        raise missing_package_error("libtpu", "compiling for a TPU", "tpu") from e
    from jax.experimental import topologies

    # Without these libtpu queries the machine that it runs on, prints errors if that is not a TPU, and locks it, so
    # that only one process could plan at a time.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": f"{generation}-{math.prod(sizes)}"}
    os.environ |= {"TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
    grid = "x".join(map(str, sizes))
    options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(sizes) == 1 else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=f"{generation}:{grid}", **options).devices
    except Exception as e:
        known = _GRIDS[len(sizes)]
        raise UserError(f"--topology: got {name!r}, expected a grid that libtpu supports, such as {known}.") from e
    return devices, TPUS[generation]


_GRIDS = {
    2: "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16",
    3: "2x2x1, 2x2x2, 2x4x4, 4x4x4 or 4x4x8",
}


def _parse_topology(name: str) -> tuple[str, list[int]]:
    """Returns the TPU generation and the sides of the grid."""
    generation, _, grid = name.lower().partition(":")
    if generation not in TPUS:
        raise unknown_name_error("--topology", generation, TPUS, expected="a TPU")
    if not re.fullmatch(r"\d+x\d+(x\d+)?", grid):
        raise UserError(
            f"--topology: got {name!r}, expected a TPU and its grid. Pass for example --topology {generation}:2x4."
        )
    sizes = [int(size) for size in grid.split("x")]
    sides, longest = (3, 28) if generation == "v5p" else (2, 16)  # libtpu aborts the process for longer sides
    if len(sizes) != sides or not 1 <= min(sizes) <= max(sizes) <= longest:
        raise UserError(
            f"--topology: got {name!r}, expected a {generation} grid with {sides} sides of 1 to {longest} chips."
        )
    return generation, sizes


def link_speed(chip: Chip, group: Sequence[Any], everyone: Sequence[Any]) -> float:
    """Returns the bytes per second that each chip of a group sends while all of the group send.

    GPUs of one machine are connected by a switch, so each sends at the speed of its links to whichever other.

    Args:
      chip: the data sheet of each device.
      group: devices of a topology that communicate.
      everyone: all devices of the topology. A row of the grid is a ring only if the group spans all of it.
    """
    if not chip.torus:
        return chip.link
    links = 0
    ours, sides = (zip(*(device.coords for device in devices), strict=True) for devices in (group, everyone))
    for span, side in zip((len(set(x)) for x in ours), (len(set(x)) for x in sides), strict=True):
        links += 0 if span == 1 else 2 if span == side and side % chip.torus == 0 else 1
    return chip.link * links

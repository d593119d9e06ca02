"""The data sheets of TPUs and GPUs."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace

import jax

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.parallel.accelerators import MEMORY_FRACTION

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """The data sheet of one device. Where only the memory is known, the rates are 0.

    Attributes:
      name: name on the command line.
      memory: bytes.
      flops: peak operations per second of matrix products, bfloat16 in and float32 out, without sparsity.
      flops_float32: the same for float32 at JAX's default precision: bfloat16 passes on a TPU, TF32 on a GPU.
      bandwidth: bytes per second to and from the memory.
      link: bytes per second in one direction: along a TPU's link to one neighbor, through all NVLinks of a GPU.
      torus: the links of a row of TPUs close to a ring if the row's length is a multiple of this.
    """

    name: str
    memory: float
    flops: float = 0.0
    flops_float32: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    torus: int = 0


# TPUs: https://docs.cloud.google.com/tpu/docs/v5e, v5p, v6e ("key specifications"). They give the interconnect of a
# chip over all ports and both directions: divide by the ports, 4 (6 on v5p), and by 2. The memory is what the compiler
# makes available; its out-of-memory error names it. Rings close along 16 chips on v5e and v6e, along any multiple of 4
# on v5p.
# GPUs: the makers' data sheets, dense, with float32 accumulation. Their "GB" of memory are GiB.
TPUS = {
    "v5e": Chip("v5e", 15.75 * GIB, 197e12, 197e12, 819e9, 400e9 / 8, 16),
    "v5p": Chip("v5p", 95.74 * GIB, 459e12, 459e12, 2765e9, 1200e9 / 12, 4),
    "v6e": Chip("v6e", 31.25 * GIB, 918e12, 918e12, 1638e9, 800e9 / 8, 16),
}
GPUS = {
    "t4": Chip("t4", 16 * GIB, 65e12, 8.1e12, 320e9),  # float16: the T4 has no bfloat16
    "l4": Chip("l4", 24 * GIB, 121e12, 60e12, 300e9),
    "rtx3090": Chip("rtx3090", 24 * GIB, 71e12, 35.6e12, 936e9),
    "rtx4090": Chip("rtx4090", 24 * GIB, 165.2e12, 82.6e12, 1008e9),
    "a100-40g": Chip("a100-40g", 40 * GIB, 312e12, 156e12, 1555e9, 300e9),
    "a100-80g": Chip("a100-80g", 80 * GIB, 312e12, 156e12, 2039e9, 300e9),
    "h100": Chip("h100", 80 * GIB, 989e12, 494e12, 3350e9, 450e9),
    "h200": Chip("h200", 141 * GIB, 989e12, 494e12, 4800e9, 450e9),
}


def find_device(name: str) -> Chip:
    """Returns the GPU of a name such as ``h100``, or a device of unknown speed for a memory such as ``8GB``.

    Its memory is the share that JAX takes: three quarters, unless ``XLA_CLIENT_MEM_FRACTION`` is set.

    Args:
      name: a name in `GPUS`, or a size in GB.

    Raises:
      UserError: `name` is neither.

    Example:
      >>> round(find_device("24GB").memory / 2**30, 2), find_device("rtx4090").memory == find_device("24GB").memory
      (18.0, True)
    """
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?gi?b", name.lower())
    if size is None and name.lower() not in GPUS:
        raise unknown_name_error("device", name, GPUS, expected="a GPU or a memory such as 8GB")
    if size and not float(size[1]):
        raise UserError(f"device: got {name}, expected more than 0 GB. Pass a memory such as 8GB.")
    chip = Chip(name, float(size[1]) * GIB) if size else GPUS[name.lower()]
    return replace(chip, memory=chip.memory * memory_fraction())


# How JAX names the TPUs, and the words of NVIDIA's names by which a GPU's data sheet is found.
_TPU_KINDS = {
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5": "v5p",
    "tpu v5p": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
}
_GPU_WORDS = {
    "t4": ("t4",),
    "l4": ("l4",),
    "rtx3090": ("rtx", "3090"),
    "rtx4090": ("rtx", "4090"),
    "a100-40g": ("a100", "40gb"),
    "a100-80g": ("a100", "80gb"),
    "h100": ("h100",),
    "h200": ("h200",),
}


def chip_of(device: jax.Device) -> Chip:
    """Returns the data sheet of a device that JAX sees, with the memory that JAX may use of it.

    The rates are 0 if the tables of this file do not have the device. A CPU has the memory of the machine.

    Example:
      >>> chip_of(jax.devices("cpu")[0]).name
      'cpu'
    """
    if device.platform == "cpu":
        return Chip("cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    kind = device.device_kind.lower()
    words = re.split(r"[\s-]+", kind)
    name = next((name for name, needed in _GPU_WORDS.items() if {*needed} <= {*words}), None)
    chip = TPUS[_TPU_KINDS[kind]] if kind in _TPU_KINDS else GPUS[name] if name else Chip(device.device_kind, 0.0)
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    return replace(chip, memory=float(limit)) if limit else chip


def memory_fraction() -> float:
    """Returns the share of a GPU's memory that JAX takes when it starts, in (0, 1].

    Raises:
      UserError: ``XLA_CLIENT_MEM_FRACTION`` is not a share.
    """
    name = next((name for name in MEMORY_FRACTION if name in os.environ), MEMORY_FRACTION[0])
    text = os.environ.get(name, "0.75")
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise UserError(f"{name}: got {text!r}, expected a number above 0 and at most 1. Run: unset {name}")

"""The device that trains a model, and the one that uses it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax

from jaxvision.advice.measure import cpu_operations_per_second
from jaxvision.errors import unknown_name_error
from jaxvision.parallel.chips import GIB, GPUS, TPUS, Chip, chip_of, find_device
from jaxvision.parallel.cores import usable_cores

#: Small devices that use a trained model. Their data sheets do not state how fast they run a network.
MOBILE = ("phone", "raspberrypi")

# JAX takes three quarters of the 15 GiB that a GPU with 16 GB offers.
_LARGE_MEMORY = 11 * GIB


@dataclass(frozen=True)
class Target:
    """The devices that a recommendation is for.

    Attributes:
      name: the device that was asked for, or the one that JAX sees here.
      chip: the device that trains. For a mobile target it is the one that JAX sees here.
      is_here: whether the chip is a device of this machine.
      is_mobile: whether the model is used on a phone or a small board.
    """

    name: str
    chip: Chip
    is_here: bool
    is_mobile: bool = False

    @property
    def has_accelerator(self) -> bool:
        """Whether a GPU or a TPU trains."""
        return self.chip.name != "cpu"

    @property
    def is_large(self) -> bool:
        """Whether a TPU trains, or a GPU with 16 GB or more."""
        return self.has_accelerator and self.chip.memory >= _LARGE_MEMORY

    def __str__(self) -> str:
        """Returns the devices in one line."""
        chip = f"{self.chip.memory / GIB:.3g} GiB of memory" if self.chip.memory else "unknown memory"
        if not self.has_accelerator:
            cores, speed = usable_cores(), self.chip.flops_float32 / 1e9
            chip = f"{cores:g} cores, {chip}, {speed:,.0f} GFLOP/s in a short measurement"
        trains = f"{self.chip.name} ({chip})"
        if self.is_mobile:
            return f"{self.name}, which uses the model; {trains} of this machine trains it"
        return f"{trains}{', which JAX sees here' if self.is_here else ''}"


def find_target(name: str | None = None) -> Target:
    """Returns the devices that a name stands for.

    Args:
      name: a GPU such as ``"t4"``, a TPU such as ``"v5e"``, a memory such as ``"8GB"``, ``"cpu"`` for the CPU of this
        machine, ``"phone"`` or ``"raspberrypi"``. Default: the device that JAX sees here.

    Raises:
      UserError: the name is none of these.
    """
    if name is None or name.lower() == "cpu" or name.lower() in MOBILE:
        device = jax.devices("cpu" if name is not None and name.lower() == "cpu" else None)[0]
        chip = chip_of(device)
        if device.platform == "cpu":
            speed = cpu_operations_per_second(device)
            chip = Chip("cpu", chip.memory, speed, speed)
        is_mobile = name is not None and name.lower() in MOBILE
        return Target(name.lower() if name else chip.name, chip, is_here=True, is_mobile=is_mobile)
    if name.lower() in TPUS:
        return Target(name.lower(), TPUS[name.lower()], is_here=False)
    if name.lower() not in GPUS and not re.fullmatch(r"[\d.]+ ?gi?b", name.lower()):
        known = [*GPUS, *TPUS, *MOBILE, "cpu"]
        raise unknown_name_error("device", name, known, expected="a device or a memory such as 8GB")
    chip = find_device(name)
    return Target(chip.name, chip, is_here=False)

"""What one step costs on one device: bytes, operations and the time that the chip's peaks allow."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jaxvision.parallel.mesh import batch_devices
from jaxvision.parallel.rules import state_bytes
from jaxvision.plan.chips import GIB, Chip, memory_fraction
from jaxvision.plan.program_text import Collective, collectives, traffic

_O0 = 9  # https://openxla.org/xla/effort_levels, as XLA numbers them


def program_bytes(compiled: Any) -> int:
    """Returns what a compiled program takes of one device's memory while it runs, its arguments included."""
    m = compiled.memory_analysis()
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return kept + m.temp_size_in_bytes + m.generated_code_size_in_bytes


def too_large(error: BaseException, given: float = 0.0) -> float | None:
    """Returns the bytes that a program would take, from the compiler's refusal; None if the error is another.

    Args:
      error: of the compiler.
      given: bytes of the program's arguments, which one of the two forms of the message leaves out.

    >>> too_large(RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."))
    22011707392.0
    >>> too_large(RuntimeError("RESOURCE_EXHAUSTED: ... for HLO temporaries (21.00G) exceeds available HBM"), 2**30)
    23622320128.0
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    number = r"(\d+(?:\.\d+)?)([KMGT])"
    used, temporaries = re.search(rf"Used {number} of", text), re.search(rf"temporaries \({number}\)", text)
    found = used or temporaries
    if found is None:
        return math.inf
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) + (0.0 if used else given)


@dataclass(frozen=True)
class Plan:
    """What one step of a run costs on one device of a mesh.

    Attributes:
      chip: the device.
      mesh: axis -> devices along it.
      zero1: the optimizer's state is split over the axis data, too.
      batch_size: images per step, over all devices.
      bytes: kind -> bytes on one device.
      flops: operations of the matrix products and convolutions of one device in one step.
      accessed: bytes that one device reads from and writes to its memory, from `traffic`.
      collectives: the messages between devices.
      compile_seconds: what the compiler took.
      float32: the products are in float32.
      useful: share of the operations that are not computed a second time.
      refused: too large: there is no program. Of `bytes` the activations are what the compiler said; if there are none,
        the state alone is too large, and it was not asked.
    """

    chip: Chip
    mesh: dict[str, int]
    zero1: bool
    batch_size: int
    bytes: dict[str, float]
    flops: float
    accessed: float = 0.0
    collectives: tuple[Collective, ...] = ()
    compile_seconds: float = 0.0
    float32: bool = False
    useful: float = 1.0
    refused: bool = False

    @property
    def total(self) -> float:
        """Bytes on one device."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """Whether that is no more than there is."""
        return not self.refused and self.total <= self.chip.memory

    @property
    def seconds(self) -> dict[str, float]:
        """What bounds a step -> its seconds, each at its peak: the step cannot be faster than the longest of them."""
        peak = self.chip.flops_float32 if self.float32 else self.chip.flops
        if self.refused or not peak:
            return {}
        parts = {"compute": self.flops / peak, "memory": self.accessed / self.chip.bandwidth}
        if self.chip.link and self.collectives:
            parts["interconnect"] = sum(row.sent / row.speed for row in self.collectives)
        return parts

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step by the roofline, all messages beside the work; None where only the memory is known."""
        return max(self.seconds.values(), default=None)

    @property
    def in_turn_seconds(self) -> float | None:
        """The same if the work waits for every message."""
        return self.step_seconds and self._work_seconds + self.seconds.get("interconnect", 0.0)

    @property
    def efficiency(self) -> tuple[float, float] | None:
        """The share of a step that is not spent on messages: if the work waits for each of them, and if for none."""
        if self.step_seconds is None or self.in_turn_seconds is None:
            return None
        return self._work_seconds / self.in_turn_seconds, self._work_seconds / self.step_seconds

    @property
    def _work_seconds(self) -> float:
        return max(self.seconds["compute"], self.seconds["memory"])

    @property
    def mfu(self) -> float | None:
        """The ceiling of the model FLOPs utilisation."""
        return self.seconds["compute"] * self.useful / self.step_seconds if self.step_seconds else None

    @property
    def flags(self) -> str:
        """What chooses this mesh on the command line."""
        axes = {"data": 1, **self.mesh}
        sizes = " ".join(f"--config.mesh.{name}={size}" for name, size in axes.items())
        return f"{sizes} --config.sharding.zero1={str(self.zero1).lower()}"

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        found = dict(vars(self), chip=vars(self.chip), collectives=[vars(row) for row in self.collectives])
        names = ("total", "fits", "seconds", "step_seconds", "in_turn_seconds", "efficiency", "mfu", "flags")
        return found | {name: getattr(self, name) for name in names}


def read(
    traced: Any,
    *,
    chip: Chip,
    mesh: Mesh,
    abstract: Any,
    shardings: Any,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    flops: float,
    useful: float,
    ahead: int,
    zero1: bool = False,
    quick: bool = False,
    float32: bool = False,
) -> Plan:
    """Returns what the compiler makes of a step.

    Args:
      traced: the step, ``jax.jit(...).trace(...)``.
      chip: whose memory and speed count.
      mesh: that it was traced for.
      abstract: shapes of the state.
      shardings: of the state.
      batch: shapes of the batch over all devices.
      flops: of one step's products, over all devices.
      useful: those of them that are not computed a second time.
      ahead: batches that wait on the device while one is used.
      zero1: the optimizer's state is split over the axis data, too.
      quick: with the compiler's least effort.
      float32: the products are in float32.
    """
    one = sum(x.size * x.dtype.itemsize for x in batch.values()) // batch_devices(mesh)
    kinds = state_bytes(abstract, shardings) | {"batch": one, "batches ahead": ahead * one}
    facts = {"chip": chip, "mesh": dict(mesh.shape), "batch_size": batch["mask"].size, "flops": flops / mesh.size}
    facts |= {"zero1": zero1, "float32": float32, "useful": useful / flops}
    if sum(kinds.values()) > chip.memory:
        return Plan(bytes=kinds, refused=True, **facts)  # type: ignore[arg-type]
    start = time.perf_counter()
    # Of a CPU's program nothing is timed, and where it keeps what is settled before LLVM, which takes longest, begins.
    options: dict[str, Any] | None = {"optimization_level": _O0} if quick else None
    options = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else options
    try:
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
        given = sum(kinds.values()) - ahead * one
        used = too_large(e, given)
        if used is None:
            raise
        rest = used - given
        return Plan(bytes=kinds | {"activations and gradients": rest}, refused=True, **facts)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    kinds |= {
        # Of tiles. What the step does not read, such as the pictures' numbers, is no argument of the program.
        "padding": max(memory.argument_size_in_bytes - sum(kinds.values()) + ahead * one, 0),
        "activations and gradients": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    messages = tuple(collectives(text, mesh, chip))
    return Plan(bytes=kinds, accessed=traffic(text), collectives=messages, compile_seconds=seconds, **facts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Answer:
    """What `jaxvision plan` tells.

    Attributes:
      plans: for the batch that was asked for, by mesh, the best first.
      asked: the config's batch; the plans' is the next that the devices divide.
      largest: the largest batch that fits, over all devices; 0 if none does, None if it was not looked for.
      tried: batch -> bytes on one device, of all programs that were compiled for the best mesh.
      assumptions: sentences.
    """

    plans: tuple[Plan, ...]
    asked: int
    largest: int | None
    tried: dict[int, float]
    assumptions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        return dict(vars(self), plans=[plan.as_dict() for plan in self.plans])


def assumptions(
    best: Plan, *, topology: str | None, num_classes: int, stored: int | None, backend: str, quick: bool = False
) -> tuple[str, ...]:
    """Returns what the numbers of a plan stand on, as sentences."""
    where = f"kept in memory at {stored} px and cropped on the device" if stored else "cropped by the workers"
    lines = [f"{num_classes:,} classes; pictures {where}"]
    if topology is None:
        share = f"{memory_fraction():.0%} of it is JAX's (XLA_CLIENT_MEM_FRACTION)"
        lines.append(f"memory: {best.chip.name} has {best.chip.memory / memory_fraction() / GIB:.4g} GiB; {share}")
        if backend == "cpu":
            lines.append(
                "compiled for the CPU at hand, which keeps other temporaries than a GPU (convolutions and bfloat16 "
                "products are lowered in another way): rough. On such a GPU the program read is the one that would run"
            )
    if best.seconds:
        lines.append(
            "time: products, memory and links each at the data sheet's peak and all at once: steps are slower than that"
        )
    elif topology is None:
        lines.append("time: of a memory alone no speed is known; a GPU's name, such as h100, has one")
    if quick:
        lines.append(
            "compiled with the least effort (--quick): the program that trains is smaller and reads less, for "
            "ResNet-50 two thirds of this; its steps may be faster than what is said here"
        )
    if best.collectives:
        lines.append(
            "messages go around in rings along the sides of the grid that their axis spans, and take no time to start"
        )
    return tuple(lines)

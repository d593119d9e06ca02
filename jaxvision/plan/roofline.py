"""The cost of one step on one device: bytes, operations, and the time that the chip's peak rates allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxvision.parallel.chips import Chip
from jaxvision.plan.collectives import Collective


@dataclass(frozen=True)
class Plan:
    """The cost of one training step on one device of a mesh.

    Attributes:
      chip: the device.
      mesh: axis -> number of devices along it.
      zero1: whether the optimizer's state is also split over the axis ``data``.
      batch_size: images per step, over all devices.
      bytes: kind -> bytes on one device during the step.
      flops: operations of one device's matrix products and convolutions in one step.
      bytes_accessed: bytes that one device reads from and writes to its memory in one step.
      collectives: the communication between devices.
      compile_seconds: how long the compilation took.
      float32: whether the products are in float32.
      model_flops_fraction: share of the operations that are not recomputations, in (0, 1].
      out_of_memory: whether the step is too large for a program to exist. The activations in `bytes` are then as the
        compiler reported them; without activations, the state alone is too large and nothing was compiled.
      start: bytes on one device before the first step, at most.
      end: bytes on one device after the last step, at most, when the model is chosen and exported.
    """

    chip: Chip
    mesh: dict[str, int]
    zero1: bool
    batch_size: int
    bytes: dict[str, float]
    flops: float
    bytes_accessed: float = 0.0
    collectives: tuple[Collective, ...] = ()
    compile_seconds: float = 0.0
    float32: bool = False
    model_flops_fraction: float = 1.0
    out_of_memory: bool = False
    start: float = 0.0
    end: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on one device: the maximum of start, step and end."""
        return max(sum(self.bytes.values()), self.start, self.end)

    @property
    def fits(self) -> bool:
        """Whether the device has enough memory."""
        return not self.out_of_memory and self.total <= self.chip.memory

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that ``compute``, ``memory`` and ``interconnect`` need, each at its peak rate.

        A step cannot be faster than the longest of them. Empty if the rates are unknown or no program exists.
        """
        peak = self.chip.flops_float32 if self.float32 else self.chip.flops
        if self.out_of_memory or not peak:
            return {}
        parts = {"compute": self.flops / peak, "memory": self.bytes_accessed / self.chip.bandwidth}
        if self.chip.link and self.collectives:
            parts["interconnect"] = sum(row.sent / row.speed for row in self.collectives)
        return parts

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step by the roofline, with full overlap of communication; None if the rates are unknown."""
        return max(self.seconds.values(), default=None)

    @property
    def seconds_without_overlap(self) -> float | None:
        """Seconds of a step by the roofline, if computation waits for every collective; None as for `step_seconds`."""
        return self.step_seconds and self._work_seconds + self.seconds.get("interconnect", 0.0)

    @property
    def efficiency(self) -> tuple[float, float] | None:
        """Share of a step that is not spent on communication: without overlap, and with full overlap."""
        if self.step_seconds is None or self.seconds_without_overlap is None:
            return None
        return self._work_seconds / self.seconds_without_overlap, self._work_seconds / self.step_seconds

    @property
    def _work_seconds(self) -> float:
        return max(self.seconds["compute"], self.seconds["memory"])

    @property
    def mfu(self) -> float | None:
        """Upper bound of the model FLOPs utilization."""
        return self.seconds["compute"] * self.model_flops_fraction / self.step_seconds if self.step_seconds else None

    @property
    def flags(self) -> str:
        """The command-line flags that choose this mesh."""
        axes = {"data": 1, **self.mesh}
        sizes = " ".join(f"--config.mesh.{name}={size}" for name, size in axes.items())
        return f"{sizes} --config.sharding.zero1={str(self.zero1).lower()}"

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields and properties as values that JSON can hold."""
        found = dict(vars(self), chip=vars(self.chip), collectives=[vars(row) for row in self.collectives])
        names = ("total", "fits", "seconds", "step_seconds", "seconds_without_overlap", "efficiency", "mfu", "flags")
        return found | {name: getattr(self, name) for name in names}

"""What `jaxvision plan` returns: the plans of the compared meshes, the largest batch, and the assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxvision.errors import count
from jaxvision.parallel.chips import GIB, GPUS, memory_fraction
from jaxvision.plan.roofline import Plan


@dataclass(frozen=True)
class PlanResult:
    """The result of planning a config.

    Attributes:
      plans: the requested batch on each compared mesh, the best mesh first.
      requested_batch_size: the config's batch size. The plans are for the next batch size that the devices divide.
      largest: the largest batch that fits, over all devices; 0 if none fits, None without a search.
      tried: batch size -> bytes on one device, for all programs compiled for the best mesh.
      assumptions: sentences about what the numbers assume.
    """

    plans: tuple[Plan, ...]
    requested_batch_size: int
    largest: int | None
    tried: dict[int, float]
    assumptions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields as values that JSON can hold."""
        return dict(vars(self), plans=[plan.as_dict() for plan in self.plans])


def describe_assumptions(
    best: Plan,
    *,
    topology: str | None,
    num_classes: int,
    stored: int | None,
    compiled_for: str,
    is_present: bool,
    quick: bool = False,
) -> tuple[str, ...]:
    """Returns sentences about what the numbers of a plan assume.

    Args:
      best: the plan.
      topology: the TPUs that the step was compiled for, None for a GPU.
      num_classes: classes of the dataset.
      stored: side in pixels of images kept in memory, None for images that the workers crop.
      compiled_for: platform that the step was compiled for.
      is_present: whether this machine has the device.
      quick: whether a TPU's compiler used its least effort.
    """
    images = (
        f"images stored in memory at {stored} px and cropped on the device" if stored else "workers crop the images"
    )
    lines = [f"dataset: {count(num_classes, 'class', 'classes')}; {images}"]
    if topology is None:
        share = memory_fraction()
        lines.append(
            f"memory: {best.chip.name} has {best.chip.memory / share / GIB:.4g} GiB, of which JAX takes {share:.0%} "
            "(XLA_CLIENT_MEM_FRACTION)"
        )
        if compiled_for == "cpu":
            lines.append(
                "memory: a rough estimate from a program compiled for this CPU, which lowers convolutions, attention "
                "and bfloat16 products differently. For the GPU's own program install jax[cuda12]; no GPU is needed"
            )
        elif not is_present:
            lines.append(
                "compiler: without the kernels that are chosen by measuring them on the GPU: Triton's for products "
                "and cuDNN's for convolutions, whose working memory is not counted"
            )
            if best.chip.name not in GPUS:
                lines.append("compiler: for an RTX 4090 with this memory")
    if best.seconds:
        lines.append(
            "time: compute, memory and links each run at the data sheet's peak rate and overlap; real steps are slower"
        )
    elif topology is None:
        lines.append("time: unknown for a memory size; name a GPU, such as --device h100")
    if quick:
        lines.append(
            "compiler: least effort (--quick). The program that trains is smaller and reads less (about two thirds for "
            "ResNet-50), so real steps can be faster than this estimate"
        )
    if best.collectives and topology is None and not best.chip.link:
        lines.append("time: without the collectives, because the speed of the links between these GPUs is unknown")
    elif best.collectives:
        where = " along the sides of the grid that their axis spans" if topology else ""
        lines.append(f"collectives: sent around rings{where}; without start-up time")
    return tuple(lines)

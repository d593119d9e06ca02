"""Compiles a step, without running it, and reads its cost."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxvision.parallel.chips import Chip
from jaxvision.parallel.mesh import batch_devices
from jaxvision.parallel.rules import state_bytes
from jaxvision.plan.collectives import count_collectives
from jaxvision.plan.roofline import Plan
from jaxvision.plan.traffic import count_traffic

_O0 = 9  # XLA's number for the effort level O0: https://openxla.org/xla/effort_levels


def plan_step(
    traced: Any,
    *,
    chip: Chip,
    mesh: Mesh,
    abstract: Any,
    shardings: Any,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    flops: float,
    model_flops: float,
    ahead: int,
    start: float = 0.0,
    end: float = 0.0,
    zero1: bool = False,
    quick: bool = False,
    float32: bool = False,
) -> Plan:
    """Returns the cost of a traced step. Compiles it unless the state alone exceeds the device's memory.

    Args:
      traced: the step, from ``jax.jit(...).trace(...)``.
      chip: the device whose memory and rates count.
      mesh: the mesh that the step was traced for.
      abstract: shapes of the state.
      shardings: shardings of the state.
      batch: shapes of the batch, over all devices.
      flops: operations of one step, over all devices.
      model_flops: those of them that are not recomputations.
      ahead: number of batches that wait on the device while the step uses another.
      start: bytes on one device before the first step.
      end: bytes on one device after the last step.
      zero1: whether the optimizer's state is also split over the axis ``data``.
      quick: compile with the compiler's least effort.
      float32: whether the products are in float32.
    """
    one = sum(x.size * x.dtype.itemsize for x in batch.values()) // batch_devices(mesh)
    kinds = state_bytes(abstract, shardings) | {"batch": one, "batches ahead": ahead * one}
    facts: dict[str, Any] = {
        "chip": chip,
        "mesh": dict(mesh.shape),
        "zero1": zero1,
        "batch_size": batch["mask"].size,
        "flops": flops / mesh.size,
        "float32": float32,
        "model_flops_fraction": model_flops / flops,
        "start": start,
        "end": end,
    }
    if sum(kinds.values()) > chip.memory:
        return Plan(bytes=kinds, out_of_memory=True, **facts)
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile(compiler_options=_compiler_options(mesh, quick))
    except jax.errors.JaxRuntimeError as e:
        arguments = sum(kinds.values()) - ahead * one
        needed = required_bytes(e, arguments)
        if needed is None:
            raise
        return Plan(bytes=kinds | {"activations and gradients": needed - arguments}, out_of_memory=True, **facts)
    seconds = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    arguments = sum(kinds.values()) - ahead * one
    kinds |= {
        # Padding of tiles. It cannot be less than 0: what the step does not read, such as the images' indices, is not
        # an argument of the program.
        "padding": max(memory.argument_size_in_bytes - arguments, 0),
        "activations and gradients": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return Plan(
        bytes=kinds,
        bytes_accessed=count_traffic(text),
        collectives=tuple(count_collectives(text, mesh, chip)),
        compile_seconds=seconds,
        **facts,
    )


def _compiler_options(mesh: Mesh, quick: bool) -> dict[str, Any] | None:
    if mesh.devices.flat[0].platform == "cpu":
        # The memory layout of a CPU's program is settled before LLVM, which takes most of the time; no time is read.
        return {"xla_backend_optimization_level": 0}
    if mesh.devices.flat[0].platform == "gpu" and mesh.devices.flat[0] not in jax.devices():
        # Triton's kernels for products are chosen by measuring them, which needs the GPU.
        return {"xla_gpu_enable_triton_gemm": False}
    return {"optimization_level": _O0} if quick else None


def required_bytes(error: BaseException, arguments: float = 0.0) -> float | None:
    """Returns the bytes that a program needs, from the compiler's out-of-memory error.

    Args:
      error: the compiler's error.
      arguments: bytes of the program's arguments. One of the two forms of the message does not include them.

    Returns:
      The bytes; infinity if the message does not say; None if the error is a different one.

    Example:
      >>> required_bytes(RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 20.50G of 15.75G hbm."))
      22011707392.0
      >>> required_bytes(RuntimeError("RESOURCE_EXHAUSTED: ... for HLO temporaries (21.00G) exceeds HBM"), 2**30)
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
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) + (0.0 if used else arguments)
